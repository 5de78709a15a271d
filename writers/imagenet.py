"""Write ImageNet (ILSVRC 2012, or any tree of train/<class>/ and val/<class>/) into betons.

    python writers/imagenet.py --source /data/imagenet --res 64 [--fit longest] [--real real.json]

ILSVRC 2012 comes from https://image-net.org/download after registration. --source holds
    train/<wnid>/*.JPEG or ILSVRC2012_img_train.tar, which is read without unpacking it, and
    val/<wnid>/*.JPEG, or val/*.JPEG or ILSVRC2012_img_val.tar together with the labels: the devkit
    (ILSVRC2012_devkit_t12.tar.gz), Kaggle's LOC_val_solution.csv, val.txt, or any list of wnids or labels with
    --ground-truth.
--real adds to each validation image all labels that are right for it; real.json comes from
https://github.com/google-research/reassessed-imagenet
"""

from fastmlp import cli
from fastmlp.beton import writer_cli as command
from fastmlp.datasets import SPECS
from fastmlp.sources import imagenet


def main() -> None:
    spec = SPECS["imagenet"]
    parser = command.parser(cli.summary(__doc__), spec.res, f"{spec.writer} --source /data/imagenet --res 64")
    parser.add_argument("--source", type=cli.path, help="folder of train and val (default: $IMAGENET)")
    parser.add_argument(
        "--ground-truth", type=cli.path, help="labels of the validation images, if they are not in a folder per class"
    )
    parser.add_argument("--real", type=cli.path, help="ReaL's real.json")
    arguments = parser.parse_args()
    to = command.options(arguments)
    root = command.resolve_source(arguments.source, "IMAGENET", "ImageNet", imagenet.ADVICE)
    train = imagenet.train(root, to.res, to.fit)
    # Opened before the training images are written, so that missing files are an error at once.
    val = imagenet.val(root, train.classes, to.res, to.fit, arguments.ground_truth, arguments.real)
    command.write_splits(spec.name, {"train": train, "val": val}.__getitem__, spec.splits, to)


if __name__ == "__main__":
    cli.run(main)
