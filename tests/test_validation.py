"""Validation during training: the scores are right, and the training does not notice."""

import math
from functools import partial

import mindspore as ms
import numpy as np
import pytest
import torch
from conftest import TINY
from mindspore import nn
from torch_midas import TorchMidas, lively, torch_loss

from evaluation import RedChannel, open_one, run
from src.common.errors import DataError
from src.evaluation.session import ShareScorer
from src.inference.mindspore import MindSporePredictor
from src.loss import create_loss
from src.midas_net import MidasNet
from src.training.group import Group
from src.training.validation import HeldBackLoss, Judge, NamedSets, Score, merge
from src.weights.checkpoint import load_into, read_weights

IMAGES = 7
EMPTY = 2  # this image has no valid pixel
ALONE = Group()


def sample(number):
    rng = np.random.default_rng(number)
    image = rng.standard_normal((3, 64, 64)).astype(np.float32)
    target = (100 + 50 * image.mean(axis=0) + np.linspace(0, 50, 64, dtype=np.float32)).astype(np.float32)
    mask = (rng.random((64, 64)) < 0.2 + 0.1 * number).astype(np.float32)
    return image, target, mask * (number != EMPTY)


SAMPLES = [sample(number) for number in range(IMAGES)]


class _WithLoss(nn.Cell):
    def __init__(self, net, loss):
        super().__init__(auto_prefix=False)
        self.net, self.loss = net, loss

    def construct(self, image, target, mask):
        return self.loss(self.net(image), target, mask)


class Brightness(nn.Cell):
    """In place of a network where none is needed: quick to compile."""

    def construct(self, image):
        return image.mean(axis=1)


@pytest.fixture(scope="module")
def brightness():
    return Brightness().set_train(True)


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """The same network in PyTorch and in MindSpore, a training step of the latter, and its validator."""
    path = tmp_path_factory.mktemp("twin") / "twin.pt"
    twin = lively(TorchMidas(**TINY))
    torch.save(twin.state_dict(), path)
    net = MidasNet(**TINY)
    load_into(net, read_weights(path))
    net.set_train(True)
    step = nn.TrainOneStepCell(_WithLoss(net, create_loss("ssi_mse")), nn.SGD(net.trainable_params(), 1e-5))
    return twin, net, step, HeldBackLoss(net, create_loss("ssi_mse"), SAMPLES, batch_size=3)  # 3 + 3 + 1 images


def state(net):
    return {parameter.name: parameter.asnumpy().copy() for parameter in net.get_parameters()}


def added(*shares):
    """The scores of several processes as one process would have them."""
    return [Score(same[0].name, sum(s.total for s in same), sum(s.count for s in same)) for same in zip(*shares)]


def test_loss_of_images_held_back_is_that_of_pytorch_in_evaluation_mode(twins):
    twin, net, _, validate = twins
    expected = []
    with torch.no_grad():
        for number, arrays in enumerate(SAMPLES):
            image, target, mask = (torch.from_numpy(array[None]) for array in arrays)
            if number != EMPTY:
                expected.append(torch_loss(twin.eval()(image), target, mask).item())
    before = state(net)
    (score,) = validate()
    assert (score.name, score.count) == ("loss", IMAGES - 1)
    assert score.total == pytest.approx(sum(expected), rel=1e-5)
    assert net.training
    assert all(cell.training for _, cell in net.cells_and_names())
    for name, value in state(net).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_processes_share_the_images_held_back(brightness):
    loss = create_loss("ssi_mse")
    whole, *shares = [
        HeldBackLoss(brightness, loss, SAMPLES, rank, world, batch_size=2)()
        for rank, world in ((0, 1), (0, 3), (1, 3), (2, 3))
    ]
    assert [share[0].count for share in shares] == [3, 2, 1]  # of images 0 3 6, 1 4 and 5; the empty one is the third's
    assert added(*shares)[0].total == pytest.approx(whole[0].total, rel=1e-6)
    assert HeldBackLoss(brightness, loss, SAMPLES[:2], 2, 3)() == [Score("loss", 0.0, 0)]


def test_training_does_not_notice_validations(twins, eval_data):
    """Losses of a run with validations between its steps are those of a run without, to the last bit."""
    twin, net, step, held_back = twins
    batches = [tuple(ms.Tensor(np.stack(column)) for column in zip(*SAMPLES[i : i + 2])) for i in (0, 3, 5)]
    start = state(net)
    without = [float(step(*batch).asnumpy()) for batch in batches]
    end = state(net)
    assert any((start[name] != end[name]).any() for name in start if "moving" in name)
    for parameter in net.get_parameters():
        parameter.set_data(ms.Tensor(start[parameter.name]))

    datasets = [open_one(eval_data, name) for name in ("TUM", "Kitti")]
    sets = NamedSets(net, partial(MindSporePredictor, width=64, height=64), ShareScorer(datasets, 2))
    losses, values = [], []
    for batch in batches:
        values.append(merge([*held_back(), *sets()], ALONE))
        losses.append(float(step(*batch).asnumpy()))
    assert losses == without
    for name, value in state(net).items():
        np.testing.assert_array_equal(value, end[name], err_msg=name)
    assert [*values[0]] == ["loss", "TUM delta>1.25", "Kitti delta>1.25"]
    assert len({value["loss"] for value in values}) == 3  # it is the network of now that is scored

    def predict(prepared):
        with torch.no_grad():
            return twin.eval()(torch.from_numpy(prepared))[0].numpy()

    predictor = MindSporePredictor(Brightness(), width=64, height=64)  # prepares images
    for dataset in datasets:
        result, _ = run(dataset, predict, lambda it, d=dataset: predictor.prepare(it.image, d.resize_method))
        assert values[0][f"{dataset.name} delta>1.25"] == pytest.approx(
            result.value, abs=0.1
        )  # pixels at the threshold


def test_processes_share_the_samples_of_evaluation_sets(eval_data):
    datasets = [open_one(eval_data, name) for name in ("Sintel", "DIW", "NYU")]
    whole = ShareScorer(datasets, 2)(RedChannel())
    assert [name for name, _, _ in whole] == ["Sintel AbsRel", "DIW WHDR", "NYU delta>1.25"]
    for world in (2, 5):  # of five processes, two have nothing to do
        shares = [
            [Score(*sums) for sums in ShareScorer(datasets, 2, rank, world)(RedChannel())] for rank in range(world)
        ]
        assert [score.count for score in added(*shares)] == [3, 3, 3]
        for score, (_, total, _) in zip(added(*shares), whole):
            assert score.total == pytest.approx(total)


def test_faulty_sample_is_left_out_and_reported_once(copied_data, capsys):
    picture = sorted((copied_data / "TUM").rglob("rgb/*.png"))[1]
    picture.write_bytes(picture.read_bytes()[:100])
    scorer = ShareScorer([open_one(copied_data, "TUM")], 2)
    for _ in range(2):
        ((name, _, count),) = scorer(RedChannel())
        assert (name, count) == ("TUM delta>1.25", 2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"left out of the validation: {picture}")


def test_images_held_back_may_count_differently(brightness):
    loss = create_loss("ssi_mse")
    alone = [merge(HeldBackLoss(brightness, loss, [sample])(), ALONE)["loss"] for sample in SAMPLES]
    weights = np.where(np.isnan(alone), 100, 1 + np.arange(len(SAMPLES)))  # one has no ground truth
    assert np.isnan(alone).any()
    shares = [HeldBackLoss(brightness, loss, SAMPLES, rank, 2, 2, weights=weights)() for rank in range(2)]
    total, count = (sum(getattr(share[0], key) for share in shares) for key in ("total", "count"))
    good = ~np.isnan(alone)
    assert total / count == pytest.approx(np.average(np.array(alone)[good], weights=weights[good]), rel=1e-5)


class Faulty(list):
    def __getitem__(self, number):
        if number == 1:
            raise DataError("b.png: gone")
        return super().__getitem__(number)


def test_validation_that_fails_or_is_stopped_leaves_the_network_in_training(brightness, eval_data):
    loss = create_loss("ssi_mse")
    with pytest.raises(DataError, match=r"b\.png: gone"):
        HeldBackLoss(brightness, loss, Faulty(SAMPLES))()
    assert brightness.training
    looks = iter([False, False, True])  # asked to stop before the third image
    (score,) = HeldBackLoss(brightness, loss, SAMPLES)(lambda: next(looks))
    assert score.count == 2
    assert brightness.training
    scorer = ShareScorer([open_one(eval_data, "TUM"), open_one(eval_data, "Kitti")], 2)
    assert scorer(RedChannel(), lambda: True) == [("TUM delta>1.25", 0.0, 0), ("Kitti delta>1.25", 0.0, 0)]


def test_scores_without_an_image_are_no_number():
    values = merge([Score("loss", 0.0, 0), Score("TUM delta>1.25", 30.0, 2)], ALONE)
    assert math.isnan(values["loss"])
    assert values["TUM delta>1.25"] == 15


def test_judge():
    judge = Judge(patience=2)
    courses = [(5.0, True), (4.0, True), (4.0, False), (3.0, True), (math.nan, False)]
    for value, is_best in courses:
        assert judge.judge({"loss": value, "TUM delta>1.25": -value}) is is_best  # the first decides
        assert not judge.is_patience_over
    assert judge.state() == {"name": "loss", "best": 3.0, "waited": 1}
    resumed = Judge(2, **judge.state())
    for one in (judge, resumed):
        assert not one.judge({"loss": math.inf})
        assert one.is_patience_over
    assert resumed.judge({"loss": 2.0})
    assert not resumed.is_patience_over


def test_judge_without_patience_never_ends_a_run():
    judge = Judge(patience=0)
    assert not judge.judge({"loss": math.nan})
    assert judge.state() == {"name": "loss", "best": None, "waited": 1}
    assert not any(judge.judge({"loss": 1.0}) and judge.is_patience_over for _ in range(5))
    assert not judge.is_patience_over
