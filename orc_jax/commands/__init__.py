"""The commands, one thin file each: parse the flags, call the library, print a table."""

COMMANDS = {
    "train": "Train the group that a config describes, or resume its run.",
    "evaluate": "Evaluate a checkpoint of a run on the test images.",
    "predict": "Print the most probable classes of image files.",
    "export": "Write a trained network as StableHLO, safetensors and ONNX.",
    "report": "Write one HTML page about one run or several.",
    "gradcam": "Draw where in an image each network looks (Grad-CAM).",
    "models": "List the networks, with their parameters and multiply-adds.",
    "import-torch": "Turn a PyTorch checkpoint into a saved network.",
}
