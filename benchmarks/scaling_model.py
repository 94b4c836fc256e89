"""What data-parallel training of the full network costs from 1 to 1024 devices: a model, and a check of it.

    python benchmarks/scaling_model.py                                  # tables of all clusters: docs/scaling.md
    python benchmarks/scaling_model.py --cluster ascend910 --batch 16 --accumulate 4
    python benchmarks/scaling_model.py --measure                        # its communication against runs on this machine
    python benchmarks/scaling_model.py --measure --train                # and against training steps; takes some minutes

The model is arithmetic and needs no device. Bandwidths, latencies and rates of computation are settings (``CLUSTERS``);
docs/scaling.md names their sources. ``--measure`` needs MindSpore and, with --train, 8 GB of memory.
"""

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

GRADIENT_BYTES = 4  # float32, whatever amp_level is: the weights that are updated stay float32
FORWARD, BACKWARD = 1, 2  # a backward pass computes two products for each of the forward pass
SMALL_REDUCTIONS = 2  # a step: valid pixels before the backward pass, what the log wants after it
CHUNK_BYTES = 256 * 1024  # in which a tree passes its data on
DEVICES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
GOOD_EFFICIENCY = 0.9


# ------------------------------------------------- the network -------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """A convolution with what belongs to it.

    Attributes:
        part: Of the network, for the table.
        parameters: That are trained: weights, bias, and gamma and beta of the normalisation after it.
        flop: Of the forward pass of one image.
        norm_channels: Of the batch normalisation after it; 0 for none.
        tensors: How many the parameters are.
    """

    part: str
    parameters: int
    flop: float
    norm_channels: int
    tensors: int


def network_layers(side: int = 384) -> list[Layer]:
    """Lists the convolutions of the full network in the order in which the backward pass computes their gradients.

    Args:
        side: Of the square image in pixels, a multiple of 32.
    """
    layers: list[Layer] = []

    def conv(part, inputs, outputs, kernel, stride_of_output, groups=1, has_bias=False, has_norm=False, is_used=True):
        weights = outputs * inputs // groups * kernel**2
        pixels = (side / stride_of_output) ** 2
        flop = 2 * weights * pixels * is_used
        norm_channels = outputs * has_norm
        parameters, tensors = weights + outputs * has_bias + 2 * norm_channels, 1 + has_bias + 2 * has_norm
        layers.append(Layer(part, parameters, flop, norm_channels, tensors))

    conv("stem", 3, 64, 7, 2, has_norm=True)
    inputs = 64
    for stage, blocks in enumerate((3, 4, 23, 3)):
        planes, stride = 64 * 2**stage, 4 * 2**stage
        width, outputs, part = 8 * planes * 32 // 64, 4 * planes, f"stage {stage + 1}"
        for block in range(blocks):
            is_first = block == 0
            # the 3x3 convolution carries the stride: the one before it sees the larger size
            conv(part, inputs, width, 1, stride // 2 if is_first and stage else stride, has_norm=True)
            conv(part, width, width, 3, stride, groups=32, has_norm=True)
            conv(part, width, outputs, 1, stride, has_norm=True)
            if is_first:
                conv(part, inputs, outputs, 1, stride, has_norm=True)
            inputs = outputs
    for stage in (4, 3, 2, 1):
        stride = 2 ** (stage + 1)
        conv("decoder", 128 * 2**stage, 256, 3, stride)
        for unit in (1, 2):
            for _ in range(2):  # refinenet4 has a first unit that the forward pass never uses
                conv("decoder", 256, 256, 3, stride, has_bias=True, is_used=(stage, unit) != (4, 1))
    conv("decoder", 256, 128, 3, 2, has_bias=True)
    conv("decoder", 128, 32, 3, 1, has_bias=True)
    conv("decoder", 32, 1, 1, 1, has_bias=True)
    return layers[::-1]


# ------------------------------------------------- the clusters -------------------------------------------------


@dataclass(frozen=True)
class Link:
    """A connection: ``latency`` in s a hop, ``bandwidth`` in bytes/s in each direction."""

    latency: float
    bandwidth: float


@dataclass(frozen=True)
class Cluster:
    """Nodes of equal devices.

    Attributes:
        about: What it is.
        inside: From a device to its neighbour in the ring of a node.
        between: A network card.
        cards: Network cards of a node.
        rates: What kind of figure -> FLOP/s that a device reaches in training.
        devices_per_node: Devices of a node.
        overhead: To start a collective operation, s.
    """

    about: str
    inside: Link
    between: Link
    cards: int
    rates: dict[str, float]
    devices_per_node: int = 8
    overhead: float = 8.4e-6

    def nodes(self, devices: int) -> int:
        """Returns how many nodes so many devices take."""
        return math.ceil(devices / self.devices_per_node)


LINE_SHARE = 0.8  # of the nominal bandwidth that reductions reach: an assumption, as are the shares of the peak below


def _link(latency_us: float, gigabytes: float) -> Link:
    return Link(latency_us * 1e-6, gigabytes * 1e9 * LINE_SHARE)


# The sources of the figures are in docs/scaling.md.
CLUSTERS = {
    "ascend910": Cluster(
        "8 x Ascend 910 a node, HCCS 30 GB/s a link, a 100 Gbit/s RoCE port each",
        inside=_link(3.4, 30),
        between=_link(9.6, 12.5),
        cards=8,
        rates={"30 % of the peak (256 TFLOP/s)": 0.3 * 256e12, "as the 2021 suite": 11.7e12},
    ),
    "a100": Cluster(
        "8 x A100 a node, NVLink 300 GB/s, a 200 Gbit/s port each",
        inside=_link(3.4, 300),
        between=_link(9.6, 25),
        cards=8,
        rates={"30 % of the peak (312 TFLOP/s)": 0.3 * 312e12},
    ),
    "v100pcie": Cluster(
        "8 x V100 a node, PCIe 3.0 x16 15.75 GB/s, one 100 Gbit/s port a node",
        inside=_link(5.7, 15.75),
        between=_link(9.6, 12.5),
        cards=1,
        rates={"30 % of the peak (112 TFLOP/s)": 0.3 * 112e12, "as the 2021 suite": 7.6e12},
    ),
}


# ------------------------------------------------- communication -------------------------------------------------


def ring(size: float, devices: int, cluster: Cluster) -> float:
    """Returns the seconds of an all-reduce of ``size`` bytes in one ring through all devices.

    2 (n - 1) hops of size / n bytes each. Of several nodes, a network card is the slowest link.
    """
    nodes = cluster.nodes(devices)
    hops, hops_between = 2 * (devices - 1), 2 * (nodes - 1)
    latency = (hops - hops_between) * cluster.inside.latency + hops_between * cluster.between.latency
    return cluster.overhead + latency + hops / devices * size / _slowest(cluster, nodes)


def tree(size: float, devices: int, cluster: Cluster) -> float:
    """Returns the seconds of an all-reduce in pipelined trees: a chain in a node, a binary tree of the nodes.

    The data go up and down, in two trees that share them and use every link in both directions: twice the size in all.
    The first chunk has to make its way through the whole depth.
    """
    nodes = cluster.nodes(devices)
    chunk = min(size, CHUNK_BYTES)
    depth_in, depth_out = min(devices, cluster.devices_per_node) - 1, math.ceil(math.log2(nodes))
    way = depth_in * _hop(cluster.inside, chunk) + depth_out * _hop(cluster.between, chunk)
    return cluster.overhead + 2 * way + 2 * (size - chunk) / _slowest(cluster, nodes)


def hierarchical(size: float, devices: int, cluster: Cluster) -> float:
    """Returns the seconds of an all-reduce in three stages.

    Reduce-scatter in the ring of each node; each device all-reduces its share with its counterparts in the other nodes,
    all network cards at once, by halving and doubling; all-gather in the ring of each node.
    """
    nodes = cluster.nodes(devices)
    local = min(devices, cluster.devices_per_node)
    seconds = ring(size, local, cluster)  # its two halves are the first stage and the last
    if nodes > 1:
        card = cluster.between.bandwidth * min(1, cluster.cards / local)  # each device's share of the network cards
        rounds = 2 * math.ceil(math.log2(nodes))
        seconds += rounds * cluster.between.latency + 2 * (nodes - 1) / nodes * size / local / card
    return seconds


def _hop(link: Link, size: float) -> float:
    return link.latency + size / link.bandwidth


def _slowest(cluster: Cluster, nodes: int) -> float:
    return cluster.inside.bandwidth if nodes == 1 else min(cluster.inside.bandwidth, cluster.between.bandwidth)


ALGORITHMS = {"ring": ring, "tree": tree, "hierarchical": hierarchical}
BEST = "best"


def all_reduce(size: float, devices: int, cluster: Cluster, algorithm: str = BEST) -> float:
    """Returns the seconds of an all-reduce of ``size`` bytes, 0 for one device; ``best`` takes the fastest way."""
    if devices == 1:
        return 0.0
    chosen = ALGORITHMS.values() if algorithm == BEST else [ALGORITHMS[algorithm]]
    return min(seconds(size, devices, cluster) for seconds in chosen)


# ------------------------------------------------- a step -------------------------------------------------


@dataclass(frozen=True)
class Work:
    """How a step is done.

    Attributes:
        rate: FLOP/s of a device.
        batch: Images a device and part.
        accumulate: Parts whose gradients are added up before the reduction.
        reductions: In how many pieces the gradients are reduced, each as soon as it is complete; 1 reduces all of them
            after the backward pass.
        algorithm: Of ``ALGORITHMS``, or ``best``.
    """

    rate: float
    batch: float = 8
    accumulate: int = 1
    reductions: int = 1
    algorithm: str = BEST


@dataclass(frozen=True)
class Step:
    """Seconds of a step: computing, reducing, and in all (with what of the reductions is not hidden)."""

    compute: float
    reduce: float
    total: float

    @property
    def efficiency(self) -> float:
        """Share of the time that a device computes in: images/s a device, relative to one device."""
        return self.compute / self.total


def pieces(layers: Sequence[Layer], count: int) -> list[tuple[float, float]]:
    """Splits the gradients into pieces of about equal size, along the backward pass.

    Returns:
        (bytes, share of the backward pass after which the piece is complete), in order.
    """
    total_bytes = sum(layer.parameters for layer in layers) * GRADIENT_BYTES
    total_flop = sum(layer.flop for layer in layers)
    result, size, done_bytes, done_flop = [], 0, 0, 0.0
    for layer in layers:
        size += layer.parameters * GRADIENT_BYTES
        done_flop += layer.flop
        if done_bytes + size >= total_bytes * (len(result) + 1) / count:
            result.append((size, done_flop / total_flop))
            done_bytes, size = done_bytes + size, 0
    return result


def step(layers: Sequence[Layer], devices: int, cluster: Cluster, work: Work) -> Step:
    """Models a step. Reducing takes nothing from computing; the update of the weights is left out."""
    pass_s = work.batch * sum(layer.flop for layer in layers) / work.rate
    compute, backward = work.accumulate * (FORWARD + BACKWARD) * pass_s, BACKWARD * pass_s
    free = spent = 0.0  # when the links are free, from the start of the last backward pass; how long they are in use
    for size, share in pieces(layers, work.reductions):
        seconds = all_reduce(size, devices, cluster, work.algorithm)
        free, spent = max(free, share * backward) + seconds, spent + seconds
    small = SMALL_REDUCTIONS * all_reduce(8 * GRADIENT_BYTES, devices, cluster, work.algorithm)
    return Step(compute, spent + small, compute - backward + max(backward, free) + small)


def sync_bn(layers: Sequence[Layer], devices: int, cluster: Cluster) -> float:
    """Returns the seconds a step of batch normalisation over all devices: two numbers a channel, forward and backward.

    Nothing hides them: the next layer waits.
    """
    sizes = (2 * layer.norm_channels * GRADIENT_BYTES for layer in layers if layer.norm_channels)
    return sum(2 * all_reduce(size, devices, cluster) for size in sizes)


def batch_for(efficiency: float, layers: Sequence[Layer], devices: int, cluster: Cluster, work: Work) -> int:
    """Returns the smallest number of images a device and step (batch x accumulate) that reaches an efficiency."""
    high = 1
    while step(layers, devices, cluster, replace(work, batch=high, accumulate=1)).efficiency < efficiency:
        high *= 2
    return next(
        batch
        for batch in range(high // 2 or 1, high + 1)
        if step(layers, devices, cluster, replace(work, batch=batch, accumulate=1)).efficiency >= efficiency
    )


# ------------------------------------------------- tables -------------------------------------------------


def print_table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a Markdown table."""
    print(f"\n{title}\n", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", sep="\n")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f}" if seconds < 0.1 else f"{1000 * seconds:.0f}"


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{min(percent, 99.9):.1f} %" if 99.5 <= percent < 100 else f"{percent:.0f} %"


def _rate(images: float) -> str:
    return f"{images:,.0f}"


def print_network(layers: Sequence[Layer]) -> None:
    """Prints where gradients and work of the backward pass are."""
    parameters, flop = sum(layer.parameters for layer in layers), sum(layer.flop for layer in layers)
    size = parameters * GRADIENT_BYTES
    print(
        f"network: {parameters / 1e6:.1f} M parameters, gradients {size / 1e6:.0f} MB, "
        f"{flop / 1e9:.1f} GFLOP forward, {(FORWARD + BACKWARD) * flop / 1e9:.0f} GFLOP a training image"
    )
    rows, done = [], 0.0
    for part in dict.fromkeys(layer.part for layer in layers):
        mine = [layer for layer in layers if layer.part == part]
        done += sum(layer.flop for layer in mine) / flop
        rows.append((part, _percent(sum(layer.parameters for layer in mine) / parameters), _percent(done)))
    head = ("part, in the order of the backward pass", "share of the gradients", "backward pass done after it")
    print_table("Gradients along the backward pass", head, rows)


def print_cluster(layers: Sequence[Layer], name: str, cluster: Cluster, options: argparse.Namespace) -> None:
    """Prints the tables of a cluster, by the options of the command line."""
    size = sum(layer.parameters for layer in layers) * GRADIENT_BYTES
    many = DEVICES[-1]
    print(f"\n{'=' * 100}\n{name}: {cluster.about}")
    print(
        f"{100 * LINE_SHARE:.0f} % of these bandwidths; a hop {cluster.inside.latency * 1e6:.1f} us in a node, ", end=""
    )
    print(f"{cluster.between.latency * 1e6:.1f} us between nodes; {cluster.overhead * 1e6:.1f} us to start a reduction")
    print_table(
        f"{name}: an all-reduce of {size / 1e6:.0f} MB, ms",
        ("devices", *ALGORITHMS),
        ((n, *(_ms(all_reduce(size, n, cluster, algorithm)) for algorithm in ALGORITHMS)) for n in DEVICES),
    )
    costs = ", ".join(f"{_ms(sync_bn(layers, n, cluster))} ms on {n}" for n in (8, 64, many))
    print(f"\nsync_bn adds {costs} to a step (twice as much with accumulate 2, and so on)")
    for kind, rate in cluster.rates.items():
        title = f"{name}, {rate / 1e12:.1f} TFLOP/s a device ({kind})"
        work = Work(rate, options.batch, options.accumulate, algorithm=options.algorithm)
        several = replace(work, reductions=options.reductions)
        overlapped = f"{options.reductions} reductions that overlap"

        rows = []
        for n in DEVICES:
            ways = replace(work, algorithm="ring"), work, several
            in_ring, one, split = (step(layers, n, cluster, way) for way in ways)
            images = n * work.batch * work.accumulate
            efficiencies = (_percent(found.efficiency) for found in (in_ring, one, split))
            rows.append((n, images, _ms(one.total), *efficiencies, _rate(images / split.total)))
        head = ("devices", "global batch", "step, ms", "efficiency in a ring", "efficiency", f"with {overlapped}")
        compute = _ms(step(layers, 1, cluster, work).compute)
        about = f"batch {work.batch} x accumulate {work.accumulate} a device, which computes for {compute} ms a step"
        print_table(f"{title}: {about}", (*head, "images/s with these"), rows)

        rows = []
        for n in (cluster.devices_per_node, many):
            for label, way in (
                ("nothing", work),
                (overlapped, several),
                ("accumulate x 4", replace(work, accumulate=4 * work.accumulate)),
                ("batch x 2", replace(work, batch=2 * work.batch)),
                ("batch x 2, accumulate x 4", replace(work, batch=2 * work.batch, accumulate=4 * work.accumulate)),
            ):
                found, images = step(layers, n, cluster, way), n * way.batch * way.accumulate
                row = (n, label, images, _ms(found.total - found.compute), _percent(found.efficiency))
                rows.append((*row, _rate(images / found.total)))
        head = ("devices", "what is done", "global batch", "not hidden, ms", "efficiency", "images/s")
        print_table(f"{title}: what helps", head, rows)
        needs = ", ".join(f"{batch_for(GOOD_EFFICIENCY, layers, n, cluster, work)} on {n}" for n in (8, 64, many))
        print(f"\nimages a device and step for {_percent(GOOD_EFFICIENCY)} without overlap: {needs}")

        rows = []
        for n in (n for n in DEVICES if n <= options.global_batch):
            found = step(layers, n, cluster, replace(several, batch=options.global_batch / n, accumulate=1))
            times = map(_ms, (found.compute, found.reduce, found.total))
            rate_of_all = _rate(options.global_batch / found.total)
            rows.append((n, f"{options.global_batch / n:g}", *times, _percent(found.efficiency), rate_of_all))
        head = ("devices", "batch a device", "computing, ms", "reducing, ms", "step, ms", "efficiency", "images/s")
        print_table(f"{title}: a global batch of {options.global_batch} on any number, {overlapped}", head, rows)


def print_loading(layers: Sequence[Layer], clusters: dict[str, Cluster], worker_rate: float) -> None:
    """Prints how many loader processes keep a device busy."""
    flop = (FORWARD + BACKWARD) * sum(layer.flop for layer in layers)
    rows = [
        (name, f"{rate / 1e12:.1f} ({kind})", f"{rate / flop:.0f}", math.ceil(rate / flop / worker_rate))
        for name, cluster in clusters.items()
        for kind, rate in cluster.rates.items()
    ]
    title = f"Loader processes a device, at {worker_rate:g} images/s each"
    print_table(title, ("cluster", "TFLOP/s a device", "images/s a device", "num_parallel_workers"), rows)


def main() -> None:
    """Reads the command line and prints the tables or the check."""
    sys.path[:0] = [str(ROOT)]
    from src.common.errors import run_script

    run_script(_run)


def _run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cluster", choices=CLUSTERS, action="append", help="may be repeated (default: all)")
    parser.add_argument("--batch", type=int, default=8, help="batch_size: images a device and part (default: 8)")
    parser.add_argument("--accumulate", type=int, default=1, help="accumulate_steps (default: 1)")
    parser.add_argument("--reductions", type=int, default=8, help="where they overlap (default: 8)")
    parser.add_argument("--algorithm", choices=(*ALGORITHMS, BEST), default=BEST, help="(default: the fastest)")
    parser.add_argument("--global_batch", type=int, default=256, help="of the table where it is fixed (default: 256)")
    parser.add_argument("--side", type=int, default=384, help="of the images, pixels (default: 384)")
    parser.add_argument(
        "--worker_rate", type=float, default=113, help="images/s of a loader (default: 113, see README)"
    )
    parser.add_argument("--measure", action="store_true", help="time reductions here and compare")
    parser.add_argument("--train", action="store_true", help="with --measure: training steps of 1 and 2 processes, too")
    parser.add_argument("--largest", type=int, default=2**24, help="of --measure: bytes (default: 16 MiB)")
    options = parser.parse_args()
    layers = network_layers(options.side)
    if options.measure:
        from check_scaling import check_model

        check_model(layers, options.largest, options.train)
        return
    clusters = {name: CLUSTERS[name] for name in options.cluster or CLUSTERS}
    print_network(layers)
    for name, cluster in clusters.items():
        print_cluster(layers, name, cluster, options)
    print_loading(layers, clusters, options.worker_rate)


if __name__ == "__main__":
    main()
