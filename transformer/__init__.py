"""The Transformer of "Attention Is All You Need" (Vaswani et al. 2017), as a library.

A package imports only packages after it in this list: `tasks`, `decoding`, `evaluation`, `training`, `model`,
`data`. `model` and `data` do not import each other.

Shapes are part of signatures. These letters name the axes in models, einsums and the search:

    b  batch (rows)              m  d_model
    s  source length             f  d_ff
    t  target length             d  d_k, query and key width of a head
    q  query length              e  d_v, value width of a head
    k  key length                h  heads
    n  hypotheses per sentence   v  vocabulary
    r  rows times hypotheses     a  width of a recurrent encoder's state, both directions together
    c  distinct distances        g  key and value heads
    p  prefix length             y, x, c  height, width and channels of an image

In losses and metrics, n is a number of tokens or sentences. Masks are boolean; True means "may attend".
"""
