"""Speed of training and translation, ours and our peers', beside the speed of the machine.

Exports nothing: a peer's module imports the peer, which need not be installed.
"""

__all__: list[str] = []
