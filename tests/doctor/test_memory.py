"""Memory of devices and host that suffices, is tight, or does not."""

from moco_jax.doctor import memory


def test_memory_that_does_not_suffice():
    giga = 10**9

    def mark(limit):
        return memory.step(giga, 8 * giga, giga, giga // 10, limit, "the device has", 256, 65536)[0]

    assert mark(16 * giga).severity == "ok"
    assert mark(10 * giga + 1).severity == "warning"
    assert mark(6 * giga).severity == "fault"
    assert "a batch_size of about 125 fits" in mark(6 * giga).text
    assert mark(giga // 2).text.endswith("take a smaller arch, or take more devices")
    assert mark(0).severity == "note"
    assert memory.host(10**6, 20, 10**6, 2048, 16 * giga)[0].severity == "warning"
    assert memory.host(10**6, 20, 10**5, 2048, 16 * giga)[0].severity == "ok"
