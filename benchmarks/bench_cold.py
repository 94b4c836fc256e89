"""One photo from a cold start: from the start of the process to the files, this project against a PyTorch script.

Needs requirements-dev.txt. The first run makes 1.7 GB of files with random weights in --folder. All contenders read the
same photo, write float32, 16-bit grey and colours at its size, and are whole processes.

python benchmarks/bench_cold.py --folder /tmp/midas_models --photo PHOTO
"""

import argparse
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

TORCH_SCRIPT = """
import sys
import cv2, numpy as np, torch
sys.path.insert(0, {tests!r})
from torch_midas import TorchMidas
weights, photo, stem = sys.argv[1:]
net = TorchMidas()
net.load_state_dict(torch.load(weights, mmap=True), assign=True)
net.to(memory_format=torch.channels_last).eval()
image = cv2.cvtColor(cv2.imread(photo), cv2.COLOR_BGR2RGB).astype(np.float32) / 255
height, width = image.shape[:2]
factor = 384 / max(height, width)
size = [round(side * factor / 32) * 32 for side in (width, height)]
ready = (cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
ready = torch.from_numpy(ready.astype(np.float32).transpose(2, 0, 1)[None])
ready = ready.contiguous(memory_format=torch.channels_last)
with torch.inference_mode():
    depth = net(ready)[None]
    depth = torch.nn.functional.interpolate(depth, (height, width), mode="bicubic", align_corners=False)[0, 0].numpy()
with open(stem + ".pfm", "wb") as file:
    file.write(b"Pf\\n%d %d\\n-1\\n" % (width, height) + np.flipud(depth).astype("<f4").tobytes())
grey = (depth - depth.min()) / max(float(np.ptp(depth)), 1e-9)
cv2.imwrite(stem + ".png", (grey * 65535).astype(np.uint16))
cv2.imwrite(stem + "_color.png", cv2.applyColorMap((grey * 255).astype(np.uint8), cv2.COLORMAP_INFERNO))
"""


def main():
    """Runs the comparison."""
    sys.path[:0] = [str(ROOT)]
    from full_network import make_files
    from side_by_side import compare, machine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the models")
    parser.add_argument("--photo", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    paths = make_files(options.folder)
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "torch_script.py"
        script.write_text(TORCH_SCRIPT.format(tests=str(ROOT / "tests")))

        def run(name, *words):
            output = Path(folder) / name
            output.mkdir(exist_ok=True)
            command = [sys.executable, *map(str, words)]
            command += [output / "map"] if words[0] == script else ["--output_path", output]
            subprocess.run(command, check=True, capture_output=True)
            (map_file,) = output.glob("*.pfm")
            map_file.unlink()

        ours = [ROOT / "midas_run.py", "--input_path", options.photo, "--model_weights"]
        contenders = {
            "PyTorch script": partial(run, "torch", script, paths["pt"], options.photo),
            ".onnx, auto": partial(run, "auto", *ours, paths["onnx"]),
            ".onnx, ONNX Runtime": partial(run, "ort", *ours, paths["onnx"], "--backend", "onnxruntime"),
            ".ckpt": partial(run, "ckpt", *ours, paths["ckpt"]),
            ".ckpt, compile cache": partial(run, "cache", *ours, paths["ckpt"], "--enable_compile_cache", "True"),
            ".mindir": partial(run, "mindir", *ours, paths["mindir"]),
        }
        compare(contenders, options.rounds)


if __name__ == "__main__":
    main()
