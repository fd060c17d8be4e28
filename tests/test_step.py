"""The step: clipping, refusing what is not finite, frozen groups, the record, micro-batches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5x_scale.core import batch as fields
from t5x_scale.core.errors import UserError
from t5x_scale.core.trees import flatten, unflatten
from t5x_scale.layers.moe import MoeMlp
from t5x_scale.models.blocks import ParallelBlock
from t5x_scale.models.config import ModelConfig
from t5x_scale.models.decoder import Decoder
from t5x_scale.models.interface import DecoderModel
from t5x_scale.optim import schedules
from t5x_scale.optim.adamw import AdamW
from t5x_scale.optim.groups import Groups
from t5x_scale.optim.interface import stop_frozen
from t5x_scale.step import (
    METRICS,
    StepConfig,
    make_eval_step,
    make_record,
    make_row_eval_step,
    make_train_step,
    metric_names,
)
from t5x_scale.train_state import TrainState

FAST = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
CONFIG = ModelConfig(
    num_layers=1, embed_dim=8, mlp_dim=12, num_heads=2, num_kv_heads=1, head_dim=4, vocab_size=11, dtype="float32"
)
MODEL = DecoderModel(CONFIG, Decoder)
ROWS, LENGTH = 4, 5
RATE = 0.01


def make_batch(seed=0, weight=None):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, CONFIG.vocab_size, (ROWS, LENGTH + 1)).astype(np.int32)
    weights = rng.integers(0, 2, (ROWS, LENGTH)) if weight is None else np.full((ROWS, LENGTH), weight)
    return {
        fields.INPUT_TOKENS: tokens[:, :-1],
        fields.TARGET_TOKENS: tokens[:, 1:],
        fields.LOSS_WEIGHTS: weights.astype(np.float32),
    }


@functools.cache
def params():
    return jax.device_get(jax.jit(MODEL.init, compiler_options=FAST)(jax.random.key(0)))


_compiled = {}


def compiled(optimizer=None, **config):
    """The jitted step; without an optimiser new parameters are the old ones minus the gradient."""
    key = repr((optimizer, config))
    if key in _compiled:
        return _compiled[key]
    config = StepConfig(**{"z_loss": 0.01, "loss_chunk_length": 2, **config})
    stop = functools.partial(stop_frozen, optimizer, MODEL.axes()) if optimizer else lambda params: params
    transformation = optimizer.make(MODEL.axes()) if optimizer else optax.sgd(1.0, momentum=0.5)
    step = make_train_step(MODEL, transformation, lambda step: RATE * (step + 1), config, stop)
    _compiled[key] = jax.jit(step, compiler_options=FAST), transformation
    return _compiled[key]


def start(optimizer=None, **config):
    step, transformation = compiled(optimizer, **config)
    return step, TrainState(jnp.zeros((), jnp.int32), params(), transformation.init(params()))


@functools.cache
def plain_gradients():
    """Loss, z-loss, accuracy, gradients of the mean over tokens, by the plain formula on full logits."""
    batch = make_batch()
    weights = batch[fields.LOSS_WEIGHTS]

    def mean(x):
        return jnp.sum(weights * x) / weights.sum()

    def loss(params):
        logits = MODEL.logits(params, batch)
        log_z = jax.scipy.special.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, batch[fields.TARGET_TOKENS][..., None], axis=-1)[..., 0]
        entropy, z = mean(log_z - chosen), mean(0.01 * log_z**2)
        correct = mean(jnp.argmax(logits, axis=-1) == batch[fields.TARGET_TOKENS])
        return entropy + z, (entropy, z, correct)

    return jax.jit(jax.grad(loss, has_aux=True), compiler_options=FAST)(params())


def moved(state):
    """What was subtracted from each parameter, by path."""
    before, after = flatten(params()), flatten(jax.device_get(state.params))
    return {path: before[path].astype(np.float64) - after[path] for path in before}


def norm_of(flat):
    return np.sqrt(sum((np.asarray(x, np.float64) ** 2).sum() for x in flat.values()))


def assert_same_bits(first, second):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(first), jax.device_get(second))


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_gradients_and_record_equal_the_plain_formula(micro_batches):
    step, state = start(max_grad_norm=None, micro_batches=micro_batches)
    state, record = step(state, make_batch(), make_record(1))
    gradients, (entropy, z, correct) = plain_gradients()
    gradients = flatten(gradients)
    for path, value in moved(state).items():
        np.testing.assert_allclose(value, gradients[path], rtol=1e-4, atol=1e-5, err_msg=path)
    weight = make_batch()[fields.LOSS_WEIGHTS].sum()
    expected = [entropy, z, correct, weight, RATE, norm_of(gradients), 0.0]
    np.testing.assert_allclose(record[0], expected, rtol=1e-5)
    assert int(state.step) == 1


def test_noise_and_signal_of_gradients_are_recorded_beside_the_rest():
    batch = make_batch()
    halves = [{name: x[rows] for name, x in batch.items()} for rows in (slice(0, None, 2), slice(1, None, 2))]
    step, state = start(max_grad_norm=None)
    squares, weights = [], []
    for part in halves:
        after, record = step(state, part, make_record(1))
        squares.append(norm_of(moved(after)) ** 2)
        weights.append(float(record[0, METRICS.index("train/weight")]))
    whole = norm_of(flatten(plain_gradients()[0])) ** 2
    inverse = np.mean(1 / np.array(weights))
    noise = (np.mean(squares) - whole) / (inverse - 1 / sum(weights))

    config = StepConfig(micro_batches=2, noise_scale=True)
    names = metric_names(MODEL, config)
    assert names == (*METRICS, "optim/gradient_noise", "optim/gradient_signal")
    step, state = start(max_grad_norm=0.1, micro_batches=2, noise_scale=True)
    after, record = step(state, batch, make_record(1, names))
    np.testing.assert_allclose(record[0, -2:], [noise, np.mean(squares) - noise * inverse], rtol=1e-3)
    # Nothing else of the step moves, but for the order of sums in another program.
    step, state = start(max_grad_norm=0.1, micro_batches=2)
    unwatched, row = step(state, batch, make_record(1))
    np.testing.assert_allclose(record[:, :-2], row, rtol=1e-5)
    for path, value in flatten(unwatched.params).items():
        np.testing.assert_allclose(flatten(after.params)[path], value, rtol=1e-5, atol=1e-7, err_msg=path)


def test_clipping():
    gradients = flatten(plain_gradients()[0])
    norm = norm_of(gradients)
    step, state = start(max_grad_norm=float(norm / 3))
    state, record = step(state, make_batch(), make_record(1))
    assert norm_of(moved(state)) == pytest.approx(norm / 3, rel=1e-4)
    for path, value in moved(state).items():
        np.testing.assert_allclose(value, gradients[path] / 3, rtol=1e-3, atol=1e-6, err_msg=path)
    # What is recorded is the norm before clipping.
    assert float(record[0, METRICS.index("optim/grad_norm")]) == pytest.approx(norm, rel=1e-5)


def test_no_clipping_under_the_threshold():
    norm = norm_of(flatten(plain_gradients()[0]))
    free = start(max_grad_norm=None)
    clipped = start(max_grad_norm=float(norm * 2))
    assert_same_bits(*(step(state, make_batch(), make_record(1))[0].params for step, state in (free, clipped)))


@pytest.mark.parametrize("weight", [np.nan, np.inf])
def test_what_is_not_finite_changes_nothing_and_is_counted(weight):
    step, state = start()
    state, record = step(state, make_batch(), make_record(3))
    after, record = step(state, make_batch(1, weight), record)
    assert_same_bits(after.params, state.params)
    assert_same_bits(after.opt_state, state.opt_state)
    assert int(after.step) == 2
    # The run goes on: the next good batch moves the parameters again.
    last, record = step(after, make_batch(2), record)
    assert (flatten(last.params)["token_embedder/embedding"] != flatten(after.params)["token_embedder/embedding"]).any()
    assert np.asarray(record)[:, METRICS.index("optim/skipped_updates")].tolist() == [0.0, 1.0, 0.0]


def test_a_batch_without_weight_is_a_gradient_of_zero():
    step, state = start()
    after, record = step(state, make_batch(0, 0.0), make_record(1))
    assert_same_bits(after.params, state.params)
    assert np.isfinite(record).all()
    assert float(record[0, METRICS.index("optim/skipped_updates")]) == 0.0


def test_frozen_groups_keep_their_bits():
    optimizer = Groups(
        AdamW(schedules.Constant(0.01), weight_decay=0.5),
        (("token_embedder/embedding", {"freeze": True}), (".*/mlp/.*", {"freeze": True})),
    )
    (step, state), record = start(optimizer), make_record(2)
    for seed in range(2):
        state, record = step(state, make_batch(seed), record)
    changed = {path for path, value in moved(state).items() if (value != 0).any()}
    assert changed == {p for p in flatten(params()) if "mlp" not in p and "token_embedder" not in p}
    # The norm is that of the gradients that are used.
    trained = {path: x for path, x in flatten(plain_gradients()[0]).items() if path in changed}
    assert float(record[0, METRICS.index("optim/grad_norm")]) == pytest.approx(norm_of(trained), rel=1e-4)


def test_rows_of_the_record():
    step, state = start()
    record = make_record(3)
    for k in range(5):
        state, record = step(state, make_batch(k, 1 + k), record)
    # Step k writes row k mod 3, so steps 3, 4 and 2 stand there.
    weights = np.asarray(record)[:, METRICS.index("train/weight")] / (ROWS * LENGTH)
    assert weights.tolist() == [4, 5, 3]
    rates = np.asarray(record)[:, METRICS.index("optim/learning_rate")]
    np.testing.assert_allclose(rates, [RATE * 4, RATE * 5, RATE * 3], rtol=1e-6)


def test_eval_step_gives_sums_of_the_same_numbers():
    _, (entropy, z, correct) = plain_gradients()
    evaluate = jax.jit(make_eval_step(MODEL, StepConfig(z_loss=0.01)), compiler_options=FAST)
    losses = evaluate(params(), make_batch())
    means = [x / losses.weight for x in (losses.total, losses.cross_entropy, losses.z_loss, losses.correct)]
    np.testing.assert_allclose(means, [entropy + z, entropy, z, correct], rtol=1e-5)


def test_row_eval_step_gives_the_sums_of_each_row():
    batch, config = make_batch(), StepConfig(z_loss=0.01, loss_chunk_length=2)
    by_row = jax.jit(make_row_eval_step(MODEL, config), compiler_options=FAST)(params(), batch)
    for row in range(ROWS):
        alone = {name: x[row : row + 1] for name, x in batch.items()}
        expected = jax.jit(make_eval_step(MODEL, config), compiler_options=FAST)(params(), alone)
        np.testing.assert_allclose([x[row] for x in by_row], expected, rtol=1e-6)


class TestAuxiliaryLosses:
    """What layers ask for is added to the loss of every token of its row."""

    CONFIG = dataclasses.replace(CONFIG, num_experts=3, num_experts_per_token=2)
    LAYER = functools.partial(ParallelBlock, mlp=functools.partial(MoeMlp, balance_loss=0.5, router_z_loss=0.1))
    MODEL = DecoderModel(CONFIG, functools.partial(Decoder, block=LAYER))

    @staticmethod
    @functools.cache
    def params():
        return jax.device_get(jax.jit(TestAuxiliaryLosses.MODEL.init, compiler_options=FAST)(jax.random.key(2)))

    @staticmethod
    def batch():
        """Rows of different weights, the last without any."""
        return make_batch(3) | {
            fields.LOSS_WEIGHTS: np.array([[1], [3], [0.5], [0]], np.float32).repeat(LENGTH, axis=1)
        }

    def plain(self, params, batch):
        weights = batch[fields.LOSS_WEIGHTS]
        logits = self.MODEL.logits(params, batch)
        log_z = jax.scipy.special.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, batch[fields.TARGET_TOKENS][..., None], axis=-1)[..., 0]
        auxiliary = self.MODEL.hidden(params, batch).auxiliary
        noted = {name: jnp.sum(weights * loss[:, None]) / weights.sum() for name, loss in auxiliary.items()}
        entropy = jnp.sum(weights * (log_z - chosen + 0.01 * log_z**2)) / weights.sum()
        return entropy + sum(noted.values()), noted

    @pytest.mark.parametrize("micro_batches", [1, 2, 4])
    def test_gradients_and_record_equal_the_plain_formula(self, micro_batches):
        config = StepConfig(micro_batches=micro_batches, max_grad_norm=None, z_loss=0.01)
        transformation = optax.sgd(1.0)
        step = jax.jit(make_train_step(self.MODEL, transformation, lambda _: RATE, config), compiler_options=FAST)
        params, batch, names = self.params(), self.batch(), metric_names(self.MODEL)
        state = TrainState(jnp.zeros((), jnp.int32), params, transformation.init(params))
        state, record = step(state, batch, make_record(1, names))
        expected, noted = jax.jit(jax.grad(self.plain, has_aux=True), compiler_options=FAST)(params, batch)
        before, after = flatten(params), flatten(jax.device_get(state.params))
        for path, gradient in flatten(expected).items():
            np.testing.assert_allclose(before[path] - after[path], gradient, rtol=1e-3, atol=1e-5, err_msg=path)
        assert names == (*METRICS, "train/balance_loss", "train/router_z_loss")
        np.testing.assert_allclose(record[0, -2:], [noted["balance_loss"], noted["router_z_loss"]], rtol=1e-5)
        # What is recorded as the loss is what an evaluation would say, without them.
        assert float(record[0, METRICS.index("train/loss")]) == pytest.approx(self.entropy(params, batch), rel=1e-5)

    def entropy(self, params, batch):
        evaluate = jax.jit(make_eval_step(self.MODEL, StepConfig(z_loss=0.01)), compiler_options=FAST)
        losses = evaluate(params, batch)
        assert float(losses.total) == pytest.approx(float(losses.cross_entropy + losses.z_loss), rel=1e-6)
        return float(losses.cross_entropy / losses.weight)

    def test_one_that_is_not_finite_changes_nothing(self):
        params = unflatten(
            flatten(self.params()) | {"decoder/layers/mlp/router/kernel": np.full((1, 8, 3), 1e30, "f4")}
        )
        step = jax.jit(make_train_step(self.MODEL, optax.sgd(1.0), lambda _: RATE, StepConfig()), compiler_options=FAST)
        state = TrainState(jnp.zeros((), jnp.int32), params, optax.sgd(1.0).init(params))
        after, record = step(state, self.batch(), make_record(1, metric_names(self.MODEL)))
        assert_same_bits(after.params, params)
        assert float(record[0, METRICS.index("optim/skipped_updates")]) == 1.0

    def test_a_dense_model_records_no_more(self):
        assert metric_names(MODEL) == METRICS


def test_micro_batches_that_do_not_divide():
    step, _ = compiled(micro_batches=3)
    state = jax.eval_shape(lambda: start()[1])
    with pytest.raises(UserError, match="a batch of 4 rows does not divide into 3 micro-batches"):
        step.lower(state, make_batch(), make_record(1))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"micro_batches": 0}, "micro_batches and loss_chunk_length must be at least 1"),
        ({"loss_chunk_length": 0}, "micro_batches and loss_chunk_length must be at least 1"),
        ({"max_grad_norm": 0.0}, "max_grad_norm is 0.0; expected a positive number or None"),
        ({"noise_scale": True}, "at least 2 micro-batches and accumulation 'plain', not 1 and 'plain'"),
        ({"noise_scale": True, "micro_batches": 2, "accumulation": "layered"}, "not 2 and 'layered'"),
    ],
)
def test_config_errors(config, message):
    with pytest.raises(UserError, match=message):
        StepConfig(**config)
