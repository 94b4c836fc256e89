"""Adam with one learning rate for the encoder and one for the rest, as a part of the compiled step."""

import mindspore as ms
from mindspore import nn, ops

from src.training.schedule import LearningRate

_adam = ops.MultitypeFuncGraph("adam")
_pick = ops.MultitypeFuncGraph("pick")


@_adam.register("Function", *["Tensor"] * 10)
def _adam_of_parameter(
    adam, beta1_power, beta2_power, beta1, beta2, epsilon, rate, gradient, parameter, moment1, moment2
):
    return adam(parameter, moment1, moment2, beta1_power, beta2_power, rate, beta1, beta2, epsilon, gradient)


@_pick.register("Tensor", "Tensor", "Bool")
def _pick_rate(encoder_rate, decoder_rate, is_encoder):
    return encoder_rate if is_encoder else decoder_rate


class _Rate(nn.Cell):
    """Step number, int32 (1,) -> learning rate, float32 scalar."""

    def __init__(self, rate: LearningRate):
        super().__init__()
        self.start, self.end, self.power = float(rate.start), float(rate.end), float(rate.power)
        self.steps, self.offset, self.frozen = rate.steps, float(rate.offset), rate.frozen

    def construct(self, global_step):
        update = global_step.reshape(()).astype(ms.float32)
        left = ops.relu(1 - (update + self.offset) / self.steps)
        rate = (self.start - self.end) * ops.pow(left, self.power) + self.end
        if self.frozen > 0:
            rate = rate * (update >= self.frozen).astype(ms.float32)
        return rate


class TwoRateAdam(nn.Adam):
    """Adam with one learning rate for the encoder and one for the rest, both found from its own count of updates.

    (``nn.Adam`` takes schedules too, but looks the rate up once a parameter: the full network then takes three times as
    long to compile.)

    Args:
        net: Its parameters whose name contains ``backbone`` are the encoder.
        encoder_rate: Learning rate of the encoder.
        decoder_rate: Learning rate of the rest.
    """

    def __init__(self, net: nn.Cell, encoder_rate: LearningRate, decoder_rate: LearningRate):
        parameters = net.trainable_params()
        self._is_encoder = tuple("backbone" in parameter.name for parameter in parameters)
        super().__init__(
            [
                {"params": [p for p, is_encoder in zip(parameters, self._is_encoder) if is_encoder], "lr": 0.0},
                {"params": [p for p, is_encoder in zip(parameters, self._is_encoder) if not is_encoder], "lr": 0.0},
                {"order_params": parameters},
            ]
        )
        self.encoder_rate, self.decoder_rate = _Rate(encoder_rate), _Rate(decoder_rate)
        self.each = ops.HyperMap()

    def construct(self, gradients, is_finite):
        """Updates the parameters, moments and counters, or leaves all of them exactly as they are.

        It has no branch: where ``is_finite`` is false, the rates are 0, and the moments are kept whole (their decay is
        1).

        Args:
            gradients: Of the parameters; zeros where ``is_finite`` is false.
            is_finite: bool scalar.
        """
        factor = is_finite.astype(ms.float32)
        encoder_rate, decoder_rate = self.encoder_rate(self.global_step), self.decoder_rate(self.global_step)
        rates = self.each(ops.partial(_pick, encoder_rate * factor, decoder_rate * factor), self._is_encoder)
        ops.assign_add(self.global_step, is_finite.astype(ms.int32).reshape((1,)))
        beta1, beta2 = 1 + factor * (self.beta1 - 1), 1 + factor * (self.beta2 - 1)
        powers = self.beta1_power * self.beta1, self.beta2_power * self.beta2
        update = ops.partial(_adam, self.opt, powers[0], powers[1], beta1, beta2, self.eps)
        done = self.each(update, rates, gradients, self._parameters, self.moment1, self.moment2)
        ops.assign(self.beta1_power, ops.select(is_finite, powers[0], self.beta1_power))
        ops.assign(self.beta2_power, ops.select(is_finite, powers[1], self.beta2_power))
        return done
