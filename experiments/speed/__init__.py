"""Measures the speed of training and translation with our code and with peers (other toolkits).

The package exports nothing, because the module of a peer imports a toolkit that may not be installed.
"""

__all__: list[str] = []
