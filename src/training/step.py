"""The training step: its graphs put together."""

from typing import Optional

import mindspore as ms
from mindspore import amp, nn

from src.training.cells import Begin, NetworkWithLoss, PartByPart, Update, WholeStep
from src.training.multi_objective import ExactDescent, UpperBoundDescent

EQUAL, EXACT, UPPER_BOUND = "equal", "exact", "upper_bound"  # weights of the sets
LOSS_SCALE = ("loss_scale", "loss_scale_counter")  # names in a checkpoint


class TrainStep:
    """One optimisation step: (image, target, mask, notes) -> float32 vector.

    The loss is that of the batches of all processes together, see ``valid_pixels`` of the loss: two processes with half
    of a batch each do what one does with the whole. So do ``parts``, whose gradients are added up, one part after the
    other. (Batch normalisation is the exception: it normalises what goes through the network together.)

    Gradients are reduced over the processes first, then looked at, then used: weights, moments and counters stay as
    they are unless the loss and the norm of the gradients, of all processes, are finite, and every process decides
    alike. With ``scaler``, the statistics of batch normalisation stay, too; without, such a step may leave NaN in them,
    and the run has to end. (A norm above 1e19 counts as infinite: its square is beyond float32.)

    Of several sets, image i of a batch belongs to set ``i % sets``. The loss of each set is normalised by its own valid
    pixels, and the loss of the step is their mean by the weights that ``weighting`` names.

    The vector holds the loss (the plain mean of the sets' losses, whatever their weights); 1 if the weights were
    updated, else 0; how many predictions, of all processes, are inverted; the loss scale; ``notes``, float32 (n,), of
    whatever the caller wants to know, summed over the processes; and, with several sets, the loss of each and the
    weight of each. It is the same in every process. State and loss are those before the update.

    With equal weights, nothing here waits for the device: the vector is on it until somebody reads it. With others,
    ``waits`` is true: the weights are found on the host.

    Args:
        net: (N, 3, H, W) -> (N, H, W).
        loss: Of ``src/loss.py``.
        optimizer: Over the parameters of ``net``.
        grad_clip_norm: Largest global norm of the gradients; 0 leaves them alone.
        world: Number of data-parallel processes, whose gradients are averaged.
        scaler: Scales the loss, for networks that compute in float16.
        parts: The batch goes through the network in so many parts of equal size, each a multiple of ``sets``.
        sets: Number of sets.
        weighting: ``EQUAL``, ``EXACT`` or ``UPPER_BOUND``, see ``src/training/multi_objective.py``.
    """

    def __init__(
        self,
        net: nn.Cell,
        loss: nn.Cell,
        optimizer: nn.Optimizer,
        grad_clip_norm: float = 0.0,
        world: int = 1,
        scaler: Optional[amp.LossScaler] = None,
        parts: int = 1,
        sets: int = 1,
        weighting: str = EQUAL,
    ):
        self.net, self.loss, self.optimizer, self.scaler, self.parts = net, loss, optimizer, scaler, parts
        weighting = weighting if sets > 1 else EQUAL
        self.waits = weighting != EQUAL
        network = NetworkWithLoss(net, loss, scaler)
        network.set_grad()
        statistics = list(self.statistics().values())
        noted = []
        if scaler:
            noted = [ms.Parameter(p.value().copy(), f"noted.{p.name}", requires_grad=False) for p in statistics]
        begin = Begin(loss, sets, world, statistics if noted else [], noted)
        is_averaged = weighting == EXACT
        update = Update(optimizer, grad_clip_norm, sets, world, scaler, statistics if noted else [], noted, is_averaged)
        if weighting == EXACT:
            self._step = ExactDescent(network, begin, update, optimizer, statistics, parts)
            return
        if parts == 1:
            step = WholeStep(network, begin, update, optimizer.parameters)
        else:
            step = PartByPart(network, begin, update, optimizer, parts)
        if weighting == UPPER_BOUND:
            self._step = UpperBoundDescent(network, begin, step, statistics, parts)
        else:
            weights = ms.Tensor([1 / sets] * sets, ms.float32)
            self._step = lambda *batch: step(*batch, weights)

    def __call__(self, image: ms.Tensor, target: ms.Tensor, mask: ms.Tensor, notes: ms.Tensor) -> ms.Tensor:
        """Does a step."""
        return self._step(image, target, mask, notes)

    def state(self) -> dict[str, ms.Parameter]:
        """Collects what a run needs to be resumed: weights, batch statistics, Adam's moments, counters, loss scale.

        Learning rates are left out: they follow from the settings and the count of updates.
        """
        parameters = {p.name: p for p in (*self.net.get_parameters(), *self.optimizer.get_parameters())}
        state = {name: p for name, p in parameters.items() if not name.startswith("learning_rate")}
        if self.is_scale_dynamic:
            state |= dict(zip(LOSS_SCALE, (self.scaler.scale_value, self.scaler.counter)))
        return state

    def statistics(self) -> dict[str, ms.Parameter]:
        """Collects the statistics of batch normalisation, which each process has of its own batches."""
        return {p.name: p for p in self.net.get_parameters() if p.name.rpartition(".")[2].startswith("moving_")}

    @property
    def is_scale_dynamic(self) -> bool:
        """Whether the loss scale changes."""
        return isinstance(self.scaler, amp.DynamicLossScaler)
