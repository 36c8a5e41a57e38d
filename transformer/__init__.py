"""The Transformer of "Attention Is All You Need" (Vaswani et al. 2017), as a library.

Data flows one way, and imports point the same way, from the last stop to the first:
`evaluation` -> `decoding` -> `training` -> `model`, `data` -> `config`.

Shapes stand in signatures. One letter has one meaning everywhere, einsums included:

    b  batch (rows)            m  d_model
    s  source length           f  d_ff
    t  target length           d  d_k, a head's query and key width
    q  query length            e  d_v, a head's value width
    k  key length              h  heads
    n  hypotheses a sentence   v  vocabulary
    r  rows times hypotheses   a  width of an encoder state, in both directions
    c  distances told apart

Masks are boolean and True means "may attend".
"""
