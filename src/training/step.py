"""The compiled training step, its optimizer, and the state that a run needs to be resumed."""

from dataclasses import asdict
from pathlib import Path

import mindspore as ms
from mindspore import nn, ops

from src.common.errors import CheckpointError
from src.loss import align_scale_shift
from src.training.schedule import Plan, Position
from src.weights.checkpoint import read_ckpt


def create_optimizer(net: nn.Cell) -> nn.Adam:
    """Makes Adam with a learning rate of its own for the encoder; ``set_learning_rates`` says which.

    (Adam also takes the rates of all steps as lists, but then it looks them up once a parameter, and the full network
    takes three times as long to compile.)

    Args:
        net: Its parameters whose name contains ``backbone`` are the encoder.
    """
    parameters = net.trainable_params()
    groups = [
        {"params": [p for p in parameters if "backbone" in p.name], "lr": 0.0},
        {"params": [p for p in parameters if "backbone" not in p.name], "lr": 0.0},
        {"order_params": parameters},
    ]
    return nn.Adam(groups)


def set_learning_rates(optimizer: nn.Adam, backbone_lr: float, no_backbone_lr: float) -> None:
    """Sets the learning rates of an optimizer of ``create_optimizer`` from its next step on."""
    for is_encoder, rate in ((True, backbone_lr), (False, no_backbone_lr)):
        member = next(p for p in optimizer.parameters if ("backbone" in p.name) == is_encoder)
        optimizer.get_lr_parameter(member).set_data(ms.Tensor(rate, ms.float32))


class _NetworkWithLoss(nn.Cell):
    """(image, target, mask) -> (loss, how many predictions are inverted, largest prediction)."""

    def __init__(self, net: nn.Cell, loss: nn.Cell):
        super().__init__(auto_prefix=False)
        self.net, self.loss = net, loss

    def construct(self, image, target, mask):
        prediction = self.net(image)
        scale, _ = align_scale_shift(prediction.astype(ms.float32), target, mask)
        inverted = (scale < 0).astype(ms.float32).sum()
        return self.loss(prediction, target, mask), inverted, prediction.max()


class TrainStep(nn.Cell):
    """One optimisation step: (image, target, mask) -> four scalars, the state being that before the step.

    * the loss;
    * whether the gradients of this process are finite: the loss may hide it, since a ReLU turns the NaN of ruined
      weights into 0;
    * how many predictions, of all processes, are inverted: a negative scale would fit them best, see ``invert_output``;
    * the largest prediction, averaged over the processes.

    Args:
        net: (N, 3, H, W) -> (N, H, W).
        loss: (prediction, target, mask) -> scalar.
        optimizer: Over the parameters of ``net``.
        grad_clip_norm: Largest global norm of the gradients; 0 leaves them alone.
        world: Number of data-parallel processes, whose gradients are averaged.
    """

    def __init__(
        self, net: nn.Cell, loss: nn.Cell, optimizer: nn.Optimizer, grad_clip_norm: float = 0.0, world: int = 1
    ):
        super().__init__(auto_prefix=False)
        self.network = _NetworkWithLoss(net, loss)
        self.network.set_grad()
        self.optimizer = optimizer
        self.value_and_grad = ops.value_and_grad(self.network, None, optimizer.parameters, has_aux=True)
        is_alone = world == 1
        self.average = nn.Identity() if is_alone else nn.DistributedGradReducer(optimizer.parameters)
        self.sum = nn.Identity() if is_alone else ops.AllReduce(ops.ReduceOp.SUM)
        self.world = world
        # NaN and infinity in what a layer gets, or gets back, show in the gradients of its bias, scale or shift. These
        # are a thousandth of all: to look at every gradient would take longer than to update the weights.
        self.vectors = tuple(i for i, parameter in enumerate(optimizer.parameters) if parameter.ndim == 1)
        self.grad_clip_norm = grad_clip_norm

    def construct(self, image, target, mask):
        (loss, inverted, peak), gradients = self.value_and_grad(image, target, mask)
        vector_sum = ops.zeros((), ms.float32)
        for index in self.vectors:
            vector_sum = vector_sum + gradients[index].astype(ms.float32).sum()
        finite = ops.isfinite(vector_sum)
        gradients = self.average(gradients)
        if self.grad_clip_norm > 0:
            gradients = ops.clip_by_global_norm(gradients, self.grad_clip_norm)
        mean_peak = self.sum(peak) / self.world  # not the largest: on the CPU AllReduce can only add
        return ops.depend(loss, self.optimizer(gradients)), finite, self.sum(inverted), mean_peak


def invert_output(step: TrainStep, peak: float) -> None:
    """Inverts the network's output: p becomes 1.5 peak - p.

    A loss that fits a scale to each image is as happy with a negative one. A decoder that starts from random weights
    therefore learns inverse depth or its negative, whichever is closer, and stays with it. Changing the sign of the
    last layer, and of its first moments in Adam, leads from one to the other in mid-training at the price of a shift,
    which the loss does not see; only pixels that the last ReLU had cut off are new to it.

    Args:
        step: Its network is a ``MidasNet``.
        peak: About the largest prediction; the half above it keeps the inverted output clear of the ReLU.
    """
    last = step.network.net.output_layer
    moments = {parameter.name: parameter for parameter in step.optimizer.get_parameters()}
    for parameter in (last.weight, last.bias):
        moment = moments[f"moment1.{parameter.name}"]
        moment.set_data(-moment)
    last.weight.set_data(-last.weight)
    last.bias.set_data(1.5 * peak - last.bias)


def training_state(step: nn.Cell) -> dict[str, ms.Parameter]:
    """Collects what a run needs to be resumed: weights, batch statistics, Adam's moments and its counters.

    Learning rates are left out: they follow from the configuration and the step counter.
    """
    return {p.name: p for p in step.get_parameters() if not p.name.startswith("learning_rate")}


def restore(step: nn.Cell, path: Path, plan: Plan) -> Position:
    """Loads a training checkpoint into a step's network and optimizer.

    Args:
        step: A ``TrainStep`` built as in the run that wrote the checkpoint.
        path: The checkpoint.
        plan: Of the resumed run.

    Returns:
        Where that run was.

    Raises:
        CheckpointError: If the file is not a training checkpoint of this network, or of a run with another plan.
    """
    tensors, extra = read_ckpt(path)
    if not asdict(Position()).keys() <= extra.keys():
        raise CheckpointError(f"{path}: expected a training checkpoint with optimizer state, found weights alone")
    changed = [
        "other training images" if key == "files" else f"{key} {extra.get(key)} then and {value} now"
        for key, value in asdict(plan).items()
        if extra.get(key) != value
    ]
    if changed:
        raise CheckpointError(f"{path}: expected a run of the same course, found {', '.join(changed)}")
    parameters = training_state(step)
    wrong = [name for name, p in parameters.items() if name not in tensors or tensors[name].shape != tuple(p.shape)]
    if wrong:
        raise CheckpointError(
            f"{path}: expected the network of the configuration and its optimizer state, found {len(wrong)} tensors "
            f"missing or of another shape, first {wrong[0]}"
        )
    for name, parameter in parameters.items():
        parameter.set_data(ms.Tensor(tensors[name]))
    return Position(*(extra[key] for key in asdict(Position())))
