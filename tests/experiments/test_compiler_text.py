"""The text of programs that the TPU compiler wrote."""

from experiments.compiler_text import collectives


def test_exchanges_are_read_from_the_text_of_a_program():
    program = """
    %all-reduce.1 = (f32[256,256]{1,0:T(8,128)S(1)}, f32[]{:T(128)}, /*index=5*/f32[16]{0}) all-reduce(%a, %b)
    %all-reduce.2 = bf16[8]{0} all-reduce-start(%c)
    %ag = ((bf16[2,4]{1,0}, f32[1]{0}), (bf16[16,4]{1,0}, f32[8]{0})) all-gather-start(%d, %e), dimensions={0}
    %done = bf16[16,4]{1,0} all-gather-done(%ag)
    %fusion = f32[8]{0} fusion(%all-gather.3), kind=kLoop
    """
    assert collectives(program) == {
        "all-reduce": {
            "count": 2,
            "bytes": 4 * (256 * 256 + 1 + 16) + 2 * 8,
            "largest_bytes": 4 * 256 * 256,
            "dtypes": ["bf16", "f32"],
        },
        "all-gather": {
            "count": 1,
            "bytes": 2 * 64 + 4 * 8,
            "largest_bytes": 2 * 64,
            "dtypes": ["bf16", "f32"],
        },
    }
