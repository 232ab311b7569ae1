"""Assembles a run from its config: program, images, views and monitors, each checked.

The program (mesh, encoder, step) knows no dataset; images and monitor come around it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from moco_jax import encoders
from moco_jax.base.errors import UserError
from moco_jax.data import order, resident
from moco_jax.data.configured import open_images, recipe_of
from moco_jax.data.sources import Source
from moco_jax.data.views import device_views, recipes
from moco_jax.encoders.configured import compute_dtype, encoder_options
from moco_jax.evaluation import features
from moco_jax.evaluation.held_out import choose
from moco_jax.method import optimizers, state, step
from moco_jax.method.choice import dictionary_class
from moco_jax.method.configured import method_of, peak_learning_rate, queue_life
from moco_jax.method.dictionary import Sizes
from moco_jax.method.step_setup import Schedule
from moco_jax.monitoring.drawn_views import DrawnViews
from moco_jax.monitoring.drift import IMAGES, Consistency
from moco_jax.monitoring.scores import Monitor
from moco_jax.parallel import mesh as mesh_lib
from moco_jax.parallel import xla_flags
from moco_jax.training import checks


@dataclasses.dataclass(frozen=True)
class Program:
    """The computation of a run: mesh, encoder, state and step; it knows no dataset.

    Attributes:
        mesh: the devices.
        encoder: the Linen module of both encoders.
        initial: a jitted function without arguments: the state before the first step.
        abstract: shapes, dtypes and shardings of the state.
        train_step: jitted, the state donated: from state and batch to state, metrics and the
            pooled features `[B, D]` of the first view. It is the same whether or not anybody wants
            the features, so that an online probe cannot change what is trained by a bit.
        batch: shapes, dtypes and shardings of what the step is fed with.
        dtype: the encoder's compute dtype.
    """

    mesh: Mesh
    encoder: nn.Module
    initial: Callable[[], state.TrainState]
    abstract: state.TrainState
    train_step: Any
    batch: step.Batch
    dtype: Any

    def compile_step(self) -> Any:
        """Compile the step for these devices."""
        return self.train_step.lower(self.abstract, self.batch).compile()

    @property
    def features(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the features that a step hands over."""
        return self.train_step.eval_shape(self.abstract, self.batch)[2]


@dataclasses.dataclass(frozen=True)
class RunSetup:
    """Everything that the training loop needs: program, images, views and monitors.

    Attributes:
        program: what the devices compute.
        source: the images that are trained on.
        recipe: the views drawn of them.
        resident_shape: `[N, H, W, C]` of images that the devices hold; None where they hold none.
        monitor: scores an encoder.
        signals: scores it by drawn views too; None where the settings do not ask for that.
        consistency: measures how far the key encoder moves while a key is in the queue.
        steps_per_epoch, total_steps: how long the run is.
    """

    program: Program
    source: Source
    recipe: recipes.Recipe
    resident_shape: resident.Shape | None
    monitor: Monitor
    signals: DrawnViews | None
    consistency: Consistency
    steps_per_epoch: int
    total_steps: int


def find_resident_shape(config: ConfigDict, source: Source) -> resident.Shape | None:
    """Return the shape of the images that devices hold throughout a run; None: they hold none.

    Raises:
        UserError: they would not fit.
    """
    if config.augment_on != "resident":
        return None
    shape = resident.shape_of(source)
    resident.require_room(shape, resident.memory_limit(), jax.device_count())
    return shape


def batch_of(config: ConfigDict, mesh: Mesh, resident_shape: resident.Shape | None) -> step.Batch:
    """Describe what the step is fed with, as shapes, dtypes and shardings.

    `resident_shape`: shape of the images that devices hold.
    """
    rows, side = config.batch_size, config.image_size
    layout = mesh_lib.sharded(mesh)

    def array(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=layout)

    if resident_shape is not None:
        held = resident.rows_of_all(resident_shape[0], mesh.size), math.prod(resident_shape[1:])
        everything = jax.ShapeDtypeStruct(held, jnp.uint8, sharding=layout)
        numbers = array(jnp.int32)
        return step.Batch(None, None, numbers, images=everything, epoch=numbers)
    images = array(jnp.uint8, side, side, config.channels)
    views: tuple = (None, None)
    if config.augment_on == "device":
        views = (recipes.View(*(array(dtype, *shape) for dtype, *shape in recipes.FIELDS)),) * 2
    return step.Batch(images, images, array(jnp.int32), *views)


def views_of(
    config: ConfigDict, mesh: Mesh, resident_shape: resident.Shape | None
) -> Callable[[step.Batch], tuple[jax.Array, jax.Array]]:
    """Make the function from a batch to query and key views, which the step begins with.

    It does the part of the work on views that `augment_on` leaves to the devices.

    `resident_shape`: shape of the images that devices hold.
    """
    recipe = recipe_of(config)
    if resident_shape is not None:
        return lambda batch: device_views.make_two_views(
            batch.images, resident_shape[1:], batch.index, batch.epoch, config.seed, recipe, mesh
        )
    if config.augment_on == "device":
        return lambda batch: (
            device_views.finish(batch.query, batch.query_view, recipe),
            device_views.finish(batch.key, batch.key_view, recipe),
        )
    return step.as_they_come


def _schedules(config: ConfigDict, steps_per_epoch: int) -> tuple[Schedule, Schedule]:
    """Make the learning rate and the momentum encoder's m, functions of the step."""
    rate = optimizers.learning_rate(
        peak_learning_rate(config),
        schedule=config.lr_schedule,
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch,
        drops=config.lr_steps,
        first_epoch=config.first_epoch,
        warmup_epochs=config.warmup_epochs,
    )
    total = config.epochs * steps_per_epoch
    return rate, optimizers.ema_momentum(config.momentum, config.momentum_schedule, total)


def _initial(
    config: ConfigDict,
    encoder: encoders.Encoder,
    optimizer: optax.GradientTransformation,
    sizes: Sizes,
) -> Callable[[], state.TrainState]:
    """Make the function that creates the state before the first step."""
    kind = dictionary_class(config.dictionary)

    def create() -> state.TrainState:
        return state.initial_state(
            config.seed,
            encoder,
            optimizer,
            config.image_size,
            lambda rng: kind.of_run(rng, sizes),
            momentum_encoder=config.key_encoder == "momentum",
            dtype=sizes.dtype,
            channels=config.channels,
        )

    return create


def _with_features_apart(pure_step: Callable) -> Callable:
    """Return the step that hands over the features behind its metrics, which are scalars then."""

    def train_step(
        now: state.TrainState, batch: step.Batch
    ) -> tuple[state.TrainState, step.Metrics, jax.Array]:
        new, metrics = pure_step(now, batch)
        features = metrics.pop("features")
        return new, metrics, features

    return train_step


def program(
    config: ConfigDict, mesh: Mesh, examples: int, resident_shape: resident.Shape | None = None
) -> Program:
    """Build what the devices of `mesh` compute for `config` and a dataset of so many `examples`.

    `resident_shape`: shape of the images that devices hold, as `find_resident_shape` says.
    """
    steps_per_epoch = max(order.steps_per_epoch(examples, config.batch_size), 1)
    method, dtype = method_of(config), compute_dtype(config.compute_dtype)
    encoder = encoders.create(**encoder_options(config), accumulate=config.accumulate, dtype=dtype)
    optimizer = optimizers.create(
        config.optimizer, config.sgd_momentum, config.weight_decay, encoders.frozen_in(encoder)
    )
    exact = jnp.promote_types(dtype, jnp.float32)
    sizes = Sizes(method.negatives, config.batch_size, examples, config.dim, exact)
    create = _initial(config, encoder, optimizer, sizes)
    shapes = jax.eval_shape(create)
    layout = state.shardings(shapes, mesh)
    pure_step = step.make_train_step(
        encoder,
        optimizer,
        *_schedules(config, steps_per_epoch),
        method,
        mean=config.mean,
        std=config.std,
        seed=config.seed,
        accumulate=config.accumulate,
        backbone_groups=config.bn_groups if encoders.has_batch_norm(config.arch) else None,
        dtype=dtype,
        mesh=mesh,
        views=views_of(config, mesh, resident_shape),
        keep_features=True,
    )
    everywhere, batch = mesh_lib.replicated(mesh), batch_of(config, mesh, resident_shape)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return Program(
        mesh=mesh,
        encoder=encoder,
        initial=jax.jit(
            create,
            out_shardings=layout,
            compiler_options=xla_flags.RUNS_ONCE if on_cpu else None,
        ),
        abstract=jax.tree.map(
            lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, layout
        ),
        train_step=jax.jit(
            _with_features_apart(pure_step),
            in_shardings=(layout, jax.tree.map(lambda x: x.sharding, batch)),
            out_shardings=(layout, everywhere, mesh_lib.sharded(mesh)),
            donate_argnums=0,
        ),
        batch=batch,
        dtype=dtype,
    )


def require_a_batch(config: ConfigDict, source: Source) -> None:
    """Raise a UserError if `source` has fewer images than a batch, or one alone."""
    if len(source) == 1:
        raise UserError(
            f"{config.dataset} has 1 example in split {config.split!r}, and there is no other to "
            "tell it from; give two or more"
        )
    if len(source) < config.batch_size:
        raise UserError(
            f"{config.dataset} has {len(source)} examples in split {config.split!r}, fewer than "
            f"batch_size={config.batch_size}; use a batch_size of at most {len(source)}"
        )


def build(config: ConfigDict, index_dir: str) -> RunSetup:
    """Assemble the run that `config` describes.

    Args:
        config: checked first.
        index_dir: where an index of records may be kept.

    Raises:
        UserError: a setting or the dataset cannot work; nothing has run on a device by then.
    """
    checks.check(config, jax.device_count())
    source = open_images(config, config.split, index_dir)
    queries = open_images(config, config.eval_split, index_dir) if config.eval_split else None
    require_a_batch(config, source)
    recipe = recipe_of(config)
    steps_per_epoch = order.steps_per_epoch(len(source), config.batch_size)
    resident_shape = find_resident_shape(config, source)
    computed = program(config, mesh_lib.create_mesh(), len(source), resident_shape)
    bank, chosen = choose(source, queries, config.knn_examples, config.seed)
    encode_as = functools.partial(_encode, config, computed)
    monitor = Monitor(
        bank=source,
        bank_indices=bank,
        queries=source if queries is None else queries,
        query_indices=chosen,
        recipe=recipe,
        encode=encode_as(config.knn_features),
        mesh=computed.mesh,
        batch_size=config.eval_batch_size,
        workers=config.workers,
        k=config.knn_k,
        temperature=config.knn_temperature,
        pool=None if config.knn_features == "backbone" else encode_as("backbone"),
    )
    return RunSetup(
        program=computed,
        source=source,
        recipe=recipe,
        resident_shape=resident_shape,
        monitor=monitor,
        signals=DrawnViews.of(monitor) if config.signals else None,
        consistency=Consistency(
            source=source,
            indices=bank[:: -(-len(bank) // IMAGES)],
            recipe=recipe,
            encode=encode_as("output"),
            mesh=computed.mesh,
            batch_size=config.eval_batch_size,
            workers=config.workers,
            life=queue_life(config),
        ),
        steps_per_epoch=steps_per_epoch,
        total_steps=config.epochs * steps_per_epoch,
    )


def _encode(config: ConfigDict, computed: Program, kind: str) -> features.Encode:
    """Make the function from images to features of a `kind`, 'backbone' or 'output'."""
    return features.make_encode(
        computed.encoder, kind, config.mean, config.std, computed.dtype, computed.mesh
    )
