"""src/training/trainer.py against a PyTorch twin; the training script is tested in test_train_script.py."""

import signal
from dataclasses import asdict

import mindspore as ms
import numpy as np
import pytest
import torch
from conftest import TINY, hand_signal
from mindspore import amp
from torch_midas import TorchMidas, lively, torch_loss

from src.common.errors import CheckpointError, DataError
from src.loss import create_loss
from src.midas_net import MidasNet
from src.training.group import Group, Meeting
from src.training.loss_log import LossLog, read_loss_csv, read_val_csv
from src.training.optimizer import TwoRateAdam
from src.training.precision import freeze_normalisation
from src.training.run_folder import RunFolder
from src.training.saved_run import read_run, restore
from src.training.schedule import LearningRate, LoopSettings, Schedule
from src.training.step import TrainStep
from src.training.trainer import Clock, EndOfRun, StoppedRun, Trainer
from src.training.validation import Judge, Score
from src.utils.order import Position, SampleOrder
from src.weights.checkpoint import load_into, read_ckpt, read_weights, save_checkpoint

STEPS = 10
COURSE = {"seed": 4, "network_ops": "midas", "layers": [1, 2]}
NOTHING = np.zeros(3, np.float32)
SCHEDULE = Schedule(steps=15, offset=0.0, frozen=0, images_per_step=2, updates=7)
SLOW = LearningRate.constant(1e-3)
FALLING = LearningRate(start=15.0, end=0.0, power=1.0, steps=15)  # 15, 14, 13 ...
SCHEDULE_OF_NEW = Schedule(steps=15, offset=0.0, frozen=0, images_per_step=2)
EXTRA = {
    "epoch": 2,
    "step": 3,
    "samples": 16,
    "steps": 8,
    "schedule": asdict(SCHEDULE),
    "course": COURSE,
    "judge": {},
    "is_validation_due": False,
}


def batches():
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        image = rng.standard_normal((4, 3, 64, 64)).astype(np.float32)
        target = (100 + 50 * image.mean(axis=1) + np.linspace(0, 50, 64, dtype=np.float32)).astype(np.float32)
        mask = (rng.random((4, 64, 64)) < 0.8).astype(np.float32)
        yield image, target, mask


def torch_losses(twin, backbone_lr, no_backbone_lr, clip):
    twin.train()
    optimizer = torch.optim.Adam(
        [{"params": twin.pretrained.parameters()}, {"params": twin.scratch.parameters()}], eps=1e-8
    )
    losses = []
    for step, batch in enumerate(batches()):
        image, target, mask = map(torch.from_numpy, batch)
        loss = torch_loss(twin(image), target, mask)
        optimizer.zero_grad()
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(twin.parameters(), clip)
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = backbone_lr[step], no_backbone_lr[step]
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_ten_steps_equal_pytorch(clip, tmp_path):
    twin = lively(TorchMidas(**TINY))
    torch.save(twin.state_dict(), tmp_path / "twin.pt")
    # Rates at which the loss moves visibly in ten steps, and a decay that makes a shifted schedule visible.
    rates = LearningRate(1e-4, 1e-6, 0.5, STEPS), LearningRate(1e-3, 1e-5, 0.5, STEPS)
    expected = torch_losses(twin, *([rate.at(update) for update in range(STEPS)] for rate in rates), clip)
    net = MidasNet(**TINY)
    load_into(net, read_weights(tmp_path / "twin.pt"))
    step = TrainStep(net.set_train(True), create_loss("ssi_mse"), TwoRateAdam(net, *rates), clip)
    outputs = [step(*map(ms.Tensor, (*batch, NOTHING))).asnumpy() for batch in batches()]
    losses, updated = [output[0] for output in outputs], [output[1] for output in outputs]
    assert updated == [1] * STEPS
    assert abs(expected[-1] - expected[0]) > 0.01 * expected[0]
    # Adam divides by the root of tiny second moments, where rounding shows: 1e-3, not the 1e-5 of a single pass.
    assert losses == pytest.approx(expected, rel=1e-3)
    assert losses[0] == pytest.approx(expected[0], rel=1e-5)


def test_parts_of_a_batch_do_what_the_batch_does(tmp_path):
    """Gradients of 4 x 2 images, added up, against those of 8; normalisation frozen, since it is over each part."""
    ms.set_seed(3)
    first = MidasNet(**TINY)
    for parameter in first.get_parameters():  # statistics under which the signal neither dies nor explodes
        if "moving_variance" in parameter.name:
            parameter.set_data(ms.Tensor(np.full(parameter.shape, 0.5, np.float32)))
    start = {p.name: p.asnumpy().copy() for p in first.get_parameters()}
    image, target, mask = (np.concatenate(arrays) for arrays in zip(*list(batches())[:2]))
    target = target * np.linspace(0.2, 1, 8, dtype=np.float32)[:, None, None]
    mask[:, :32] *= (np.arange(8) % 3 > 0)[:, None, None]  # parts of unequal numbers of valid pixels
    runs = []
    for parts in (1, 4):
        net = MidasNet(**TINY)
        for parameter in net.get_parameters():
            parameter.set_data(ms.Tensor(start[parameter.name]))
        freeze_normalisation(net)
        rates = LearningRate.constant(1e-5), LearningRate.constant(1e-4)
        step = TrainStep(net.set_train(True), create_loss("ssi_mse"), TwoRateAdam(net, *rates), parts=parts)
        told = [step(*map(ms.Tensor, (image, target, mask, NOTHING))).asnumpy() for _ in range(10)]
        runs.append((step, np.stack(told)))
    (whole, expected), (_, found) = runs
    assert expected[-1, 0] < 0.95 * expected[0, 0]
    np.testing.assert_allclose(found[:, 0], expected[:, 0], rtol=1e-5)
    np.testing.assert_array_equal(found[:, 1:], expected[:, 1:])
    for name in whole.net.parameters_dict():
        ours, theirs = (run[0].net.parameters_dict()[name].asnumpy() for run in runs)
        # The last bias is a shift, to which the loss is blind: its gradient is rounding; Adam makes whole steps of it.
        if name != "output_conv_scratch.4.bias":
            assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs) + 1e-7, name
        assert ("moving" in name) == np.array_equal(ours, start[name]) or "refinenet4_scratch.resConfUnit1" in name


@pytest.fixture(scope="module", params=[1, 2])
def scaled_step(request):
    """A step whose loss is scaled: in one part, without a branch as on Ascend and GPU, or in two, with one."""
    ms.set_seed(1)
    net = MidasNet(**TINY).set_train(True)
    scaler = amp.DynamicLossScaler(2.0**10, 2, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("src.training.cells.is_device_the_host", lambda: request.param == 2)
        return TrainStep(net, create_loss("ssi_mse"), TwoRateAdam(net, SLOW, SLOW), 0.0, 1, scaler, request.param)


def test_overflow_changes_nothing_but_the_scale(scaled_step, tmp_path):
    """The scale is halved; it is doubled after three steps without overflow; a resumed one goes on with its count."""
    image, target, mask = next(batches())
    bad = image.copy()
    bad[1, 0, 3, 5] = np.inf
    told = []
    for number in range(9):
        before = {name: parameter.asnumpy().copy() for name, parameter in scaled_step.state().items()}
        picture = bad if number in (1, 7) else image
        told.append(scaled_step(*map(ms.Tensor, (picture, target, mask, NOTHING))).asnumpy())
        if number in (1, 7):
            for name, parameter in scaled_step.state().items():  # statistics of normalisation, too
                assert "loss_scale" in name or np.array_equal(before[name], parameter.asnumpy()), name
        if number == 3:  # in the middle of a window
            scale, counter = (scaled_step.state()[name] for name in ("loss_scale", "loss_scale_counter"))
            assert (scale.asnumpy(), counter.asnumpy()) == (2.0**9, 2)
            path = tmp_path / "Midas_0-2_3.ckpt"
            save_checkpoint(path, scaled_step.state(), EXTRA)
            scale.set_data(ms.Tensor(3.0, ms.float32)), counter.set_data(ms.Tensor(0, ms.int32))
            restore(scaled_step, read_run(path), COURSE)
    assert [row[1] for row in told] == [1, 0, 1, 1, 1, 1, 1, 0, 1]
    assert [row[3] for row in told] == [2.0**n for n in (10, 10, 9, 9, 9, 10, 10, 10, 9)]


def test_scaling_changes_no_update(scaled_step):
    """Powers of two: the same to the last digit, but for what float32 rounds to 0."""
    if scaled_step.parts > 1:
        pytest.skip("parts are normalised apart")
    image, target, mask = next(batches())
    plain = make_step()
    for name, parameter in plain.state().items():
        parameter.set_data(ms.Tensor(scaled_step.state()[name].asnumpy()))
    outputs = [one(*map(ms.Tensor, (image, target, mask, NOTHING))).asnumpy() for one in (plain, scaled_step)]
    assert outputs[0][0] == outputs[1][0]
    for name, parameter in plain.state().items():
        np.testing.assert_allclose(parameter.asnumpy(), scaled_step.state()[name].asnumpy(), rtol=1e-5, atol=1e-7)


def test_learning_rates_by_hand():
    rate = LearningRate(start=1.0, end=0.2, power=0.5, steps=4)  # (1 - 0.2) * sqrt(1 - i / 4) + 0.2
    expected = [1.0, 0.8 * 0.75**0.5 + 0.2, 0.8 * 0.5**0.5 + 0.2, 0.8 * 0.5 + 0.2, 0.2, 0.2]
    assert [rate.at(update) for update in range(6)] == pytest.approx(expected, rel=1e-12)
    assert [LearningRate.constant(0.3).at(update) for update in (0, 1, 1000)] == [0.3] * 3
    late = LearningRate(start=1.0, end=0.2, power=0.5, steps=4, offset=1, frozen=2)
    assert [late.at(update) for update in range(4)] == pytest.approx([0, 0, expected[3], 0.2], rel=1e-12)


def test_schedule_of_a_run_that_goes_on_with_other_steps():
    """10 of 40 updates are done, a quarter of the fall; then steps of half the images: 60 more, for the rest of it."""
    then = Schedule(steps=40, offset=0.0, frozen=4, images_per_step=8, updates=10)
    now = then.resumed(left=60, frozen=10, images_per_step=4)
    rates = [schedule.rate(1.0, 0.0, 1.0, is_encoder=True) for schedule in (then, now)]
    assert [rate.at(10) for rate in rates] == pytest.approx([0.75, 0.75], rel=1e-12)
    assert [rates[1].at(update) for update in (11, 40, 70)] == pytest.approx([0.75 * 59 / 60, 0.375, 0], abs=1e-12)
    once_more = Schedule(**{**asdict(now), "updates": 40}).resumed(left=10, frozen=10, images_per_step=12)
    assert [once_more.rate(1.0, 0.0, 1.0, False).at(update) for update in (40, 50)] == pytest.approx(
        [0.375, 0], abs=1e-12
    )
    # With the same images, a step that was skipped has not moved the schedule, nor does resuming.
    skipped = Schedule(steps=40, offset=0.0, frozen=4, images_per_step=8, updates=9)
    assert skipped.resumed(left=29, frozen=3, images_per_step=8) == skipped


def test_optimizer_finds_the_rates_by_its_own_count():
    """A gradient of 1 on every weight moves it by the learning rate in Adam's first update, and in the next ones."""
    net = MidasNet(**TINY)
    rates = LearningRate(1e-3, 1e-5, 0.5, 4, offset=1.0, frozen=1), LearningRate.constant(1e-2)
    optimizer = TwoRateAdam(net, *rates)
    parameters = net.trainable_params()
    ones = tuple(ms.ops.ones_like(parameter) for parameter in parameters)
    before = {p.name: p.asnumpy().astype(np.float64) for p in parameters}
    for update in range(3):
        optimizer(ones, ms.Tensor(True))
        for parameter in parameters:
            moved = before[parameter.name] - parameter.asnumpy()
            rate = rates[0 if "backbone" in parameter.name else 1].at(update)
            assert np.abs(moved - rate).max() < 1e-3 * rate + 1e-6, parameter.name  # weights around 1 round to 1e-7
            before[parameter.name] = parameter.asnumpy().astype(np.float64)


@pytest.fixture(scope="module")
def step():
    """A step over a network with random weights that a test may change."""
    return make_step()


def test_step_that_is_not_finite_changes_no_weight_moment_or_counter(step):
    image, target, mask = next(batches())
    notes = np.array([0.25, 7, 5], np.float32)  # as many as NOTHING has: another number is another graph
    told = step(*map(ms.Tensor, (image, target, mask, notes))).asnumpy()
    assert told[1] == 1
    assert told[3:].tolist() == [1, 0.25, 7, 5]  # the loss is not scaled
    assert step.optimizer.global_step.asnumpy() == 1
    before = {name: parameter.asnumpy().copy() for name, parameter in step.state().items()}
    for spoilt in (np.nan, np.inf):
        bad = image.copy()
        bad[1, 0, 3, 5] = spoilt
        assert step(*map(ms.Tensor, (bad, target, mask, notes))).asnumpy()[1] == 0
    after = step.state()
    statistics = [name for name in before if "moving" in name]  # these change in the forward pass
    assert len(statistics) < len(before)
    for name in {*before} - {*statistics}:
        np.testing.assert_array_equal(before[name], after[name].asnumpy(), err_msg=name)
    assert step(*map(ms.Tensor, (image, target, mask, notes))).asnumpy()[1] == 1
    assert step.optimizer.global_step.asnumpy() == 2


def test_gradient_of_any_shape_is_looked_at(step):
    """Infinite targets reach the weights by the loss alone: nothing in the forward pass is out of order."""
    image, target, mask = next(batches())
    target[2, 5, 5], mask[2, 5, 5] = 1e30, 1
    told = step(*map(ms.Tensor, (image, target, mask, NOTHING))).asnumpy()
    assert told[1] == 0


def make_step(**sizes):
    ms.set_seed(1)
    net = MidasNet(**{**TINY, **sizes}).set_train(True)
    return TrainStep(net, create_loss("ssi_mse"), TwoRateAdam(net, SLOW, SLOW))


def test_inverted_images_are_counted(step):
    image, target, mask = next(batches())
    prediction = step.net(ms.Tensor(image)).asnumpy()
    target[1] = 300 - target[1]
    pairs = zip(prediction, target, mask.astype(bool))
    inverted = sum(np.corrcoef(one[valid], true[valid])[0, 1] < 0 for one, true, valid in pairs)
    told = step(*map(ms.Tensor, (image, target, mask, NOTHING))).asnumpy()
    assert told[2] == inverted
    assert 0 < inverted < 4


def test_restore_gives_back_all_of_the_state(tmp_path):
    step = make_step()
    rng = np.random.default_rng(1)
    for parameter in step.state().values():
        if parameter.dtype == ms.float32:
            parameter.set_data(ms.Tensor(rng.random(parameter.shape, np.float32)))
    step.optimizer.global_step.set_data(ms.Tensor([7], ms.int32))
    path = tmp_path / "Midas_0-2_3.ckpt"
    save_checkpoint(path, step.state(), EXTRA)
    other, saved = make_step(), read_run(path)
    assert (saved.position, saved.schedule) == (Position(2, 3, 16, 8), SCHEDULE)
    restore(other, saved, COURSE)
    state = step.state()
    names = set(state)
    assert {"global_step", "beta1_power", "moment1.backbone_conv.weight", "backbone_bn.moving_mean"} <= names
    for name, parameter in other.state().items():
        assert np.array_equal(parameter.asnumpy(), state[name].asnumpy()), name


def test_restore_refuses_what_does_not_fit(step, tmp_path):
    weights, older, good = (tmp_path / name for name in ("weights.ckpt", "older.ckpt", "good.ckpt"))
    save_checkpoint(weights, {p.name: p for p in step.net.get_parameters()})
    save_checkpoint(older, step.state(), {"epoch": 2, "step": 3, "inverted": 0, "batch_size": 4})
    save_checkpoint(good, step.state(), EXTRA)
    with pytest.raises(CheckpointError, match="weights alone"):
        read_run(weights)
    with pytest.raises(CheckpointError, match="found an older one"):
        read_run(older)
    with pytest.raises(CheckpointError, match=r"seed 4 then and 8 now, network_ops midas then and modelzoo now;"):
        restore(step, read_run(good), {**COURSE, "seed": 8, "network_ops": "modelzoo"})
    with pytest.raises(CheckpointError, match="of another shape, first"):
        restore(make_step(features=8), read_run(good), COURSE)


class FakeDataset:
    """Batches without content, for a step that does not look at them."""

    num_parallel_workers, python_multiprocessing = 1, False

    def __init__(self, count, before=lambda number: None):
        self.count, self.before = count, before

    def create_tuple_iterator(self, num_epochs):
        self.numbers = iter(range(1, self.count + 1))
        return self

    def __next__(self):
        number = next(self.numbers)
        self.before(number)
        return (number,)

    def stop(self):
        pass


class FakeStep:
    """Tells a loss of 100 - number, one inverted image, and what the notes say; steps ``bad`` are not finite."""

    def __init__(self, *bad, scaler=None, scale=1.0):
        self.bad, self.calls, self.scaler, self.scale = bad, 0, scaler, scale
        self.is_scale_dynamic = scaler == "dynamic"
        self.net = ms.nn.Dense(1, 1)

    def __call__(self, number, notes):
        self.calls += 1
        told = [100.0 - number, float(number not in self.bad), 1.0, self.scale, *notes.asnumpy().tolist()]
        return ms.Tensor(told, ms.float32)

    def state(self):
        return {p.name: p for p in self.net.get_parameters()}

    def statistics(self):
        return {}


def make_trainer(folder, step, epochs=3, rank=0, validators=(), judge=None, on_saved=None, **settings):
    order = SampleOrder(size=10, batch_size=2, seed=1)
    run_folder = RunFolder(folder)
    run_folder.lock()
    paths = [f"{number}.jpg" for number in range(10)]
    return Trainer(
        step, order, LoopSettings(epochs, 5 * epochs, **settings), (FALLING, SLOW), SCHEDULE_OF_NEW, COURSE, run_folder,
        lambda samples: [paths[sample] for sample in samples], Group(rank), None, validators, judge, on_saved,
    )  # fmt: skip


def test_log_is_complete_whatever_the_interval(tmp_path):
    for interval in (1, 4, 1000):
        folder = tmp_path / str(interval)
        make_trainer(folder, FakeStep(), log_interval=interval).run(FakeDataset(15), Position())
        rows = list(read_loss_csv(folder / "loss.csv"))
        assert [(row.epoch, row.step) for row in rows] == [(epoch, step) for epoch in (1, 2, 3) for step in range(1, 6)]
        assert [row.loss for row in rows] == [100 - number for number in range(1, 16)]
        assert {row.inverted for row in rows} == {1}


def test_step_that_is_not_finite_ends_the_run_without_touching_its_checkpoints(tmp_path):
    step = FakeStep(8)
    trainer = make_trainer(tmp_path, step, log_interval=1000, keep_checkpoints=1)
    samples = trainer.order.all_samples(7 * 2)
    with pytest.raises(EndOfRun) as caught:
        trainer.run(FakeDataset(15), Position())
    files = ", ".join(f"{sample}.jpg" for sample in samples)
    assert str(caught.value) == (
        f"gradients: expected finite numbers, found NaN or infinity at epoch 2 step 3, batch {files}; "
        f"the last good checkpoint is {tmp_path}/Midas_0-1_5.ckpt"
    )
    assert step.calls == 10  # looked at before the checkpoint of epoch 2, which is not written
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["Midas_0-1_5.ckpt"]
    assert [row.loss for row in read_loss_csv(tmp_path / "loss.csv")] == [100 - number for number in range(1, 8)]


@pytest.mark.parametrize("moment", ["before the step", "in the step", "while the epoch's curve is drawn"])
def test_stop_request_between_any_two_lines_leaves_a_checkpoint(tmp_path, monkeypatch, moment):
    step = FakeStep()

    def request(*_):
        hand_signal(signal.SIGTERM)

    dataset = FakeDataset(15, lambda number: request() if moment == "before the step" and number == 5 else None)
    if moment == "in the step":
        original = FakeStep.__call__
        monkeypatch.setattr(
            FakeStep, "__call__", lambda self, n, t: (request() if n == 5 else None, original(self, n, t))[1]
        )
    if moment.startswith("while"):
        monkeypatch.setattr(LossLog, "draw_now_and_then", request)
    trainer = make_trainer(tmp_path, step, log_interval=1000, save_epochs=1000)
    with pytest.raises(EndOfRun) as caught:
        trainer.run(dataset, Position())
    rows = list(read_loss_csv(tmp_path / "loss.csv"))
    (checkpoint,) = tmp_path.glob("*.ckpt")
    assert checkpoint.name == f"Midas_0-{rows[-1].epoch}_{rows[-1].step}.ckpt"
    assert str(caught.value) == (
        f"stopped on request after epoch {rows[-1].epoch} step {rows[-1].step}; the last checkpoint is {checkpoint}; "
        "--resume True resumes the run"
    )
    assert step.calls == len(rows) <= 6


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_process_that_writes_a_checkpoint_names_it(tmp_path, rank):
    def vanish(number):
        if number == 8:
            raise DataError("/data/8.jpg: gone")

    with pytest.raises(DataError) as caught:
        make_trainer(tmp_path, FakeStep(), rank=rank, save_epochs=1000).run(FakeDataset(15, vanish), Position())
    written = [str(path) for path in tmp_path.glob("*.ckpt")]
    if rank:
        assert written == []
        assert str(caught.value) == "/data/8.jpg: gone; there is no checkpoint yet"
    else:
        assert written == [f"{tmp_path}/Midas_0-2_2.ckpt"]
        assert f"gone; the last checkpoint is {written[0]}; --resume" in str(caught.value)


def test_full_disk_names_the_checkpoint_that_is_there(tmp_path, monkeypatch):
    def write(path, *content):
        if path.name == "Midas_0-2_5.ckpt":
            raise CheckpointError(f"{path}: cannot be written: No space left on device")
        save_checkpoint(path, *content)

    monkeypatch.setattr("src.training.trainer.save_checkpoint", write)
    with pytest.raises(CheckpointError) as caught:
        make_trainer(tmp_path, FakeStep()).run(FakeDataset(15), Position())
    assert str(caught.value) == (
        f"{tmp_path}/Midas_0-2_5.ckpt: cannot be written: No space left on device; "
        f"the last checkpoint is {tmp_path}/Midas_0-1_5.ckpt; --resume True resumes the run"
    )


def test_skipped_steps_are_logged_and_counted(tmp_path, capsys):
    make_trainer(tmp_path, FakeStep(3, 4, scaler="dynamic", scale=512.0)).run(FakeDataset(15), Position())
    rows = list(read_loss_csv(tmp_path / "loss.csv"))
    assert [row.updated for row in rows] == [int(number not in (3, 4)) for number in range(1, 16)]
    # The rates count updates.
    assert [row.backbone_lr for row in rows] == pytest.approx([15, 14, 13, 13, 13, *range(12, 2, -1)])
    assert {row.loss_scale for row in rows} == {512}
    assert "; skipped so far, as gradients overflowed: 2; loss scale 512\n" in capsys.readouterr().out
    (_, newest) = sorted(tmp_path.glob("*.ckpt"))
    assert read_run(newest).schedule.updates == 13


@pytest.mark.parametrize(
    ("scaler", "scale", "ends_at"), [("dynamic", 1.0, 20), ("static", 512.0, 20), ("dynamic", 2.0, 0)]
)
def test_scale_that_cures_nothing_ends_the_run(tmp_path, scaler, scale, ends_at):
    step = FakeStep(*range(1, 40), scaler=scaler, scale=scale)
    trainer = make_trainer(tmp_path, step, epochs=6, log_interval=1)
    if not ends_at:
        trainer.run(FakeDataset(30), Position())
        return
    with pytest.raises(
        EndOfRun,
        match=rf"found NaN or infinity in 20 steps in a row, loss scale {scale:g} at epoch 4 step 5.*; "
        "smaller learning rates may help, or amp_dtype bfloat16, or amp_level O0$",
    ):
        trainer.run(FakeDataset(30), Position())
    assert len(list(read_loss_csv(tmp_path / "loss.csv"))) == 19


def test_best_network_is_kept_and_patience_ends_the_run(tmp_path, capsys):
    scores = iter([5.0, 3.0, 4.0, 3.5, 1.0])
    seen = []

    def validate(is_asked):
        seen.append(is_asked())
        return [Score("loss", 2 * next(scores), 2), Score("TUM delta>1.25", 7.0, 1)]

    saved = []
    trainer = make_trainer(
        tmp_path, FakeStep(), epochs=6, validators=[validate], judge=Judge(patience=2), save_epochs=100,
        on_saved=lambda: saved.append(sorted(path.name for path in tmp_path.glob("*.ckpt"))),
    )  # fmt: skip
    trainer.run(FakeDataset(30), Position())
    assert seen == [False] * 4
    assert [(row.epoch, row.name, row.value) for row in read_val_csv(tmp_path / "val.csv")] == [
        (epoch, name, value)
        for epoch, loss in ((1, 5), (2, 3), (3, 4), (4, 3.5))
        for name, value in (("loss", loss), ("TUM delta>1.25", 7))
    ]
    output = capsys.readouterr().out
    assert output.count(", the best so far (") == 2
    assert "no better score in 2 validations (patience): the run ends here\n" in output
    assert saved == [["Midas_0-best.ckpt"]] * 2 + [["Midas_0-4_5.ckpt", "Midas_0-best.ckpt"]]
    assert read_ckpt(tmp_path / "Midas_0-best.ckpt")[1]["scores"] == {"loss": 3, "TUM delta>1.25": 7}
    assert read_run(tmp_path / "Midas_0-4_5.ckpt").extra["judge"] == {"name": "loss", "best": 3, "waited": 2}
    with pytest.raises(CheckpointError, match="found weights alone"):
        read_run(tmp_path / "Midas_0-best.ckpt")
    assert RunFolder(tmp_path).latest().path.name == "Midas_0-4_5.ckpt"


def test_stop_request_cuts_a_validation_short(tmp_path):
    def validate(is_asked):
        if trainer.judge.name == "stop":
            hand_signal(signal.SIGTERM)
            assert is_asked()
        return [Score("loss", 4.0, 2)]

    for epochs in (1, 3):  # at the end of the run, too
        folder = tmp_path / str(epochs)
        trainer = make_trainer(folder, FakeStep(), epochs, validators=[validate], judge=Judge(0, "stop"), save_epochs=9)
        with pytest.raises(StoppedRun, match=r"stopped on request after epoch 1 step 5; .*Midas_0-1_5\.ckpt") as caught:
            trainer.run(FakeDataset(5 * epochs), Position())
        assert caught.value.exit_status == 143
        assert [path.name for path in folder.glob("*.ckpt")] == ["Midas_0-1_5.ckpt"]  # no best one
        assert not (folder / "val.csv").exists()
        saved = read_run(folder / "Midas_0-1_5.ckpt")
        assert saved.extra["is_validation_due"]
        # A run that goes on makes up for it first.
        trainer = make_trainer(folder, FakeStep(), epochs, validators=[validate], save_epochs=9)
        rest = FakeDataset(5 * (epochs - 1)) if epochs > 1 else None
        trainer.run(rest, saved.position, saved.extra["is_validation_due"])
        assert [(row.epoch, row.value) for row in read_val_csv(folder / "val.csv")] == [
            (n + 1, 2) for n in range(epochs)
        ]
        assert not read_run(folder / f"Midas_0-{epochs}_5.ckpt").extra["is_validation_due"]


def test_checkpoints_by_the_clock(tmp_path):
    saved = []
    trainer = make_trainer(
        tmp_path, FakeStep(), save_epochs=100, save_minutes=1e-9, log_interval=1000, keep_checkpoints=99,
        on_saved=lambda: saved.append(trainer.last_checkpoint.name),
    )  # fmt: skip
    trainer.run(FakeDataset(15), Position())
    assert saved == [f"Midas_0-{epoch}_{step}.ckpt" for epoch in (1, 2, 3) for step in (1, 2, 3, 4, 5)]
    trainer = make_trainer(tmp_path / "next", FakeStep(), save_epochs=100, save_minutes=1000, log_interval=1)
    trainer.run(FakeDataset(15), Position())
    assert [path.name for path in (tmp_path / "next").glob("*.ckpt")] == ["Midas_0-3_5.ckpt"]


@pytest.mark.parametrize(
    ("spent", "advice"), [("data", "num_parallel_workers"), ("host", "log_interval"), ("device", "")]
)
def test_where_the_time_of_a_step_goes(spent, advice, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = Clock(computes_at_once=False)
    for what in ("data", "host", "device"):
        now[0] += 8.0 if what == spent else 0.2
        clock.lap(what)
    now[0] += 0.2
    clock.lap("call")  # hands a step over to a queue
    milliseconds = {what: (4000 if what == spent else 100) + (100 if what == "host" else 0) for what in clock.spent}
    said = clock.describe(steps=2)
    assert said.startswith(
        f"of {sum(milliseconds.values())} ms a step, {milliseconds['device']} computing, {milliseconds['data']} "
        f"waiting for training data, {milliseconds['host']} other"
    )
    assert said.endswith(" other") != bool(advice)
    assert advice in said


def test_time_of_steps_is_that_of_a_device_that_lags_behind(tmp_path, monkeypatch):
    """A step returns at once and takes a second: the clock moves when somebody waits for what it tells."""
    clock = [0.0]

    class Told:
        def __init__(self, number, notes):
            self.number, self.values = number, np.array([1.0, 1.0, 0.0, 1.0, *notes.asnumpy()], np.float32)

        def asnumpy(self):
            clock[0] = max(clock[0], self.number)
            return self.values

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(FakeStep, "__call__", lambda self, number, notes: Told(number, notes))
    make_trainer(tmp_path, FakeStep(), log_interval=1000).run(FakeDataset(15), Position())
    assert [row.seconds for row in read_loss_csv(tmp_path / "loss.csv")] == [1.0] * 15


class GroupOfTwo(Group):
    """The first of two processes; what the other one would have given."""

    def __init__(self, other):
        super().__init__(0, 2)
        self.other = other

    def sum(self, values):
        return values + self.other(values)


def test_statistics_of_a_checkpoint_are_the_mean_of_all_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("mindspore.ops.AllReduce", lambda *_: None)
    mean = ms.Parameter(ms.Tensor([[1.0, 2.0]]), name="bn.moving_mean")
    variance = ms.Parameter(ms.Tensor([4.0]), name="bn.moving_variance")
    trainer = make_trainer(tmp_path, FakeStep())
    trainer.step.statistics = lambda: {"bn.moving_mean": mean, "bn.moving_variance": variance}
    theirs = np.array([3.0, 6.0, 8.0]) / 2
    trainer.group = GroupOfTwo(lambda values: theirs if len(values) == 3 else 0 * values)
    trainer.group.first_finishes = lambda work: work()
    trainer.save(Position(1, 1, 2, 1))
    assert (mean.asnumpy().tolist(), variance.asnumpy().tolist()) == ([[2, 4]], [6])


def test_meeting_goes_on_until_all_have_finished(monkeypatch):
    """This process has one item, the other three; the other is asked to stop before its third."""
    monkeypatch.setattr("mindspore.ops.AllReduce", lambda *_: None)
    others = iter([(0, 1), (0, 1), (1, 1), (0, 0)])  # asked, at work
    meeting = Meeting(GroupOfTwo(lambda values: np.array(next(others))), lambda: False)
    assert not meeting.is_asked()
    assert meeting.finish()
    assert next(others, None) is None


def test_group_of_one():
    group = Group()
    assert group.first_does(lambda: np.arange(3.0), 3).tolist() == [0, 1, 2]
    group.check_equal("anything", "a")
    with pytest.raises(ZeroDivisionError):
        group.first_does(lambda: 1 / 0, 1)
