"""Names that a setting can take, for whoever checks them and whoever implements them; imports nothing.

Tests compare the lists with what is implemented under these names.
"""

DEVICE_TARGETS = ("Ascend", "GPU", "CPU")
BACKENDS = ("mindspore", "openvino", "onnxruntime")
PRECISIONS = ("fp32", "bf16")
EVAL_SHAPES = ("dynamic", "static", "fixed")
NETWORK_OPS = ("midas", "modelzoo")
LOSSES = ("ssi_mse", "ssi_mae", "ssi_trim")
MIXINGS = ("naive", "multi_objective", "pooled")
TRUTH_KINDS = ("inverse_depth", "negative_disparity", "depth")
AMP_LEVELS = ("O0", "O1", "O2", "O3", "auto")
AMP_DTYPES = ("float16", "bfloat16")
LOSS_SCALINGS = ("static", "dynamic", "off")
JIT_LEVELS = ("O0", "O1", "O2")
# What mindspore.device_context.ascend.op_precision.precision_mode takes.
OP_PRECISIONS = (
    "force_fp16", "allow_fp32_to_fp16", "allow_mix_precision", "must_keep_origin_dtype", "force_fp32",
    "allow_fp32_to_bf16", "allow_mix_precision_fp16", "allow_mix_precision_bf16",
)  # fmt: skip
RESIZE_METHODS = ("lower_bound", "upper_bound", "minimal")
PROTOCOLS = ("paper", "modelzoo")
PREDICTIONS = ("inverse_depth", "depth")
DATA_SETS = ("Kitti", "Sintel", "TUM", "NYU", "ETH3D", "DIW")
EXPORT_FORMATS = ("AIR", "MINDIR", "ONNX")
# Height and width that the 2021 suite exported for each of these sets.
EXPORT_SIZES = {"Sintel": (160, 384), "Kitti": (384, 1280), "TUM": (288, 384)}
# cv2.COLORMAP_*, in lower case.
COLORMAPS = (
    "autumn", "bone", "cividis", "cool", "deepgreen", "hot", "hsv", "inferno", "jet", "magma", "ocean",
    "parula", "pink", "plasma", "rainbow", "spring", "summer", "turbo", "twilight", "twilight_shifted",
    "viridis", "winter",
)  # fmt: skip
