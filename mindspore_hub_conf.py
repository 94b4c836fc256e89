"""Entry point of MindSpore Hub."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from src.midas_net import MidasNet


def create_network(name: str, *, checkpoint: str = "", **kwargs: Any) -> "MidasNet":
    """Makes the network: (N, 3, H, W) float32 of normalised RGB -> (N, H, W) inverse depth, H and W multiples of 32.

    Args:
        name: ``midas``.
        checkpoint: A file with weights of any origin that ``model_weights`` of config.yaml takes. The sizes of the
            network are then its own, where ``kwargs`` do not say otherwise. Without it the weights are random.
        **kwargs: Of ``MidasNet``.

    Raises:
        NotImplementedError: Another name.
        UsageError: There is no such file.
        CheckpointError: The file does not hold such a network.
    """
    if name.lower() not in ("midas", "midasnet"):
        raise NotImplementedError(f"{name}: expected midas, the only network of this project")
    from src.midas_net import MidasNet
    from src.weights.checkpoint import build_network, open_weights

    weights = open_weights(checkpoint, "checkpoint", whole=True)
    if weights is None:
        return MidasNet(**kwargs)
    decided = weights.settings({"width_per_group": kwargs.get("width_per_group")})
    sizes = {key: value for key, value in decided.items() if not key.startswith("nm_")}
    net, _ = build_network(weights, {**sizes, **kwargs}, "checkpoint")  # without random values before those of the file
    return net.set_train(False)
