"""The command lines, one thin file each: flags in, a library call, a table out."""

COMMANDS = {
    "train": "Train the group that a config describes, or resume its run.",
    "evaluate": "Evaluate a checkpoint of a run on the test images.",
    "predict": "Name the likeliest classes of image files.",
    "export": "Write a trained network as StableHLO, safetensors and ONNX.",
    "report": "Write one HTML page about one run or several.",
    "gradcam": "Draw where in an image each network looks (Grad-CAM).",
    "models": "List the networks, with their parameters and multiply-adds.",
    "import-torch": "Turn a PyTorch checkpoint into a saved network.",
}
