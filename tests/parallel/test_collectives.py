"""What crosses between eight devices in one compiled step; traffic of image size is noticed."""

import functools
import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import collectives
from moco_jax.config import default_config
from moco_jax.method import shuffle
from moco_jax.parallel import mesh
from moco_jax.training import assembly

DEVICES, B, SIDE, DIM, SLOTS, EXAMPLES = 8, 128, 32, 16, 64, 100_000
IMAGE = SIDE * SIDE * 3


SMALL = {
    "arch": "resnet6",
    "width": 16,
    "stem": "cifar_stride2",
    "dim": DIM,
    "head": "mlp",
    "image_size": SIDE,
    "batch_size": B,
    "shuffle_groups": 8,
    "queue_size": SLOTS * B,
    "compute_dtype": "float32",
}


@functools.cache
def compiled(groups, exchange=shuffle.exchange, resident_shape=None, **changes):
    """Collectives of a step whose images change places by `exchange`, and its state's shapes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffle, "exchange", exchange)
        return _compiled(groups, resident_shape, **changes)


def _compiled(groups, resident_shape, **changes):
    config = default_config()
    config.update(SMALL | {"bn_groups": groups})
    if resident_shape:
        config.update(augment="cifar", augment_on="resident")
    config.update(changes)
    program = assembly.program(
        config,
        mesh.create_mesh(jax.devices()[:DEVICES]),
        examples=EXAMPLES,
        resident_shape=resident_shape,
    )
    return collectives.read(program.compile_step().as_text()), program.abstract


def judge(found, shapes, groups, largest=B * DIM):
    """One sentence on every collective that the design does not name.

    At most `largest` values of features may cross.
    """
    parameters = {tuple(x.shape) for x in jax.tree.leaves(shapes.params)}
    # XLA may lay a kernel's gradient out in another order of its axes.
    parameters = {tuple(sorted(s)) for s in parameters}
    channels = {x.shape[0] for x in jax.tree.leaves(shapes.batch_stats)}
    share = B // DEVICES * IMAGE
    exchanged, wrong = 0, []
    for one in found:
        size = math.prod(one.shape)
        squeezed = tuple(sorted(n for n in one.shape if n != 1))
        whole = tuple(sorted(one.shape))
        if one.dtype == "u8":
            exchanged += one.bytes
            if one.kind == "all-reduce" or one.kind == "all-gather":
                wrong.append(f"images by {one.kind}: {one.line}")
            continue
        gradient = one.kind == "all-reduce" and (
            whole in parameters or squeezed in {tuple(n for n in p if n != 1) for p in parameters}
        )
        moments = any(size in (c, groups * c, max(groups // DEVICES, 1) * c) for c in channels)
        if not (gradient or moments or size <= largest):
            wrong.append(f"{one.kind} of {one.shape}: {one.line}")
    # An array may pass in two collectives where a group spans devices (the exchange and a permute).
    limit = share * (1 if groups % DEVICES == 0 else 2)
    if exchanged > limit:
        wrong.append(f"{exchanged} bytes of images a device, more than its share of {limit}")
    return wrong


@pytest.mark.parametrize("groups", [1, DEVICES // 2, DEVICES, 2 * DEVICES])
def test_a_step_moves_gradients_moments_features_and_one_exchange(groups):
    found, shapes = compiled(groups)
    assert found, "no collective was read at all: has the text of compiled programs changed?"
    assert not judge(found, shapes, groups)
    assert {"all-reduce"} <= {c.kind for c in found}
    images = [c for c in found if c.dtype == "u8"]
    assert bool(images) == (groups > 1)
    if groups > 1 and groups % DEVICES == 0:
        # What travels with kernels' gradients are gradients too: those of scales and biases.
        alone = [c for c in found if c.kind == "all-reduce" and "f32[3,3," not in c.line]
        spans = [c for c in alone if c.shape in {(1, 16), (groups, 16)}]
        assert not spans, "moments of groups that lie on one device must stay there"


def test_of_images_that_the_devices_share_a_batchs_rows_travel_and_nothing_of_the_set():
    found, shapes = compiled(DEVICES, resident_shape=(100_001, SIDE, SIDE, 3))
    asked, rows = ("all-gather", "s32", (B,)), ("reduce-scatter", "u8", (B // DEVICES, IMAGE))
    kinds = [(c.kind, c.dtype, c.shape) for c in found]
    assert kinds.count(rows) == 1
    assert not judge([c for c in found if (c.kind, c.dtype, c.shape) != rows], shapes, DEVICES)
    sent = Counter((c.kind, c.dtype, c.shape) for c in compiled(DEVICES)[0])
    assert Counter(kinds) - sent == Counter([asked, rows])
    assert not sent - Counter(kinds)


def test_a_permutation_of_images_is_noticed():
    order = jnp.asarray(np.random.default_rng(0).permutation(B))

    def permute(x, *_):
        return x[order]

    found, shapes = compiled(DEVICES, permute)
    assert judge(found, shapes, DEVICES)


V3 = dict(
    dictionary="batch",
    symmetric=True,
    times_2t=True,
    head="v3_resnet",
    predictor="v3_resnet",
    head_width=32,
    bn_groups=1,
    shuffle="none",
)
BANK = dict(key_encoder="none", dictionary="memory_bank", shuffle="none", bank_negatives=1024)
ANY_QUEUE = dict(queue_size=SLOTS * B - 5, mask_same_example=True, queue_start="empty")


@pytest.mark.parametrize(
    ("groups", "largest", "changes"),
    [
        (DEVICES, B * DIM, dict(key_encoder="query", dictionary="batch")),
        (1, B * DIM, V3),
        (DEVICES, B * DIM, ANY_QUEUE),
        (2 * DEVICES, B * DIM, dict(accumulate=2)),
        # The drawn entries travel from where they lie to where they are compared.
        (DEVICES, 1024 * DIM, BANK),
        (DEVICES, 1024 * DIM, BANK | dict(loss="nce")),
    ],
    ids=["end-to-end", "v3", "any queue", "accumulated", "memory bank", "memory bank, NCE"],
)
def test_every_method_moves_no_more(groups, largest, changes):
    found, shapes = compiled(groups, **changes)
    assert found
    assert not judge(found, shapes, groups, largest)


def test_what_goes_between_slices_of_tpu_chips_is_read():
    """The text is the TPU compiler's, of a step for two slices of 2x4 chips."""
    text = """
  %after-all = token[] after-all(), frontend_attributes={MegascaleRendezvousKeyName="all-reduce"}
  %sum = f32[128,1024]{1,0:T(8,128)} reduce-scatter(%f), replica_groups={{0,1,2,3,4,5,6,7}}
  %send = (f32[128,8,128]{2,1,0:T(8,128)}, u32[], token[]) send(%bitcast, %after-all), \
channel_id=2, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:7}",\
_xla_megascale_transfer_type="ALL_REDUCE"}, backend_config={}
  %recv = (f32[128,8,128]{2,1,0:T(8,128)}, u32[], token[]) recv(%after-all), channel_id=1, \
frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
"""
    (sent,) = collectives.read_between_slices(text)
    assert (sent.kind, sent.dtype, sent.shape) == ("all-reduce", "f32", (128, 8, 128))
    assert sent.bytes == 128 * 1024 * 4
    assert [c.kind for c in collectives.read(text)] == ["reduce-scatter"]
