"""The methods of four tutorials from which people first learnt to solve this task, as they are written there.

Each runs beside the modern recipes, so that a reader of the tutorial finds it here and sees what it scores. Whatever a tutorial does not
tell (often epochs, batch and momentum) is marked "ours". All of them end in two outputs, some with cross-entropy, some with LogSoftmax and
NLLLoss; here it is one logit with binary cross-entropy, which is the same: P(dog) = sigmoid(b - a) for outputs a and b, with equal losses
and gradients (tests/test_heads.py). Their best figure is an accuracy of 98.95 % on another test set of this data.
"""

from comp.recipe import FineTune, Folds, HeadShape, Model, Phase, Pixels, Prediction, Recipe, Svm

# A tutorial's training: one learning rate for all layers and steps, no augmentation, decay, average or bound that it does not name.
PLAIN = FineTune(
    head_start=False,
    schedule="constant",
    warmup=0.0,
    layer_decay=1.0,
    weight_decay=0.0,
    clip_norm=None,
    ema=0.0,
    crop="center-crop",
    flip=False,
    colour=0.0,
)
SQUASHED = Pixels(fit="squash", size_px=224, canvas=1.0)  # transforms.Resize((224, 224))
ONE_VIEW = Prediction(views="none")


def vgg16_mlp() -> Recipe:
    """VGG16, convolutions frozen; its classifier replaced by 25088-4096-4096-1 with ReLU and dropout, trained by Adam on kept features.

    Photos squashed to 224 px, mean and std 0.5. Its cross-entropy of two outputs is the binary one of their difference, as here. Epochs,
    batch and the learning rate, Adam's own .001, are ours.
    """
    return Recipe(
        name="vgg16_mlp",
        model=Model(backbone="vgg16.tv_in1k", layer="features", pool="flatten"),
        pixels=SQUASHED.replace(normalise="constants"),
        training=PLAIN.replace(
            trainable="head",
            head=HeadShape(widths=(4096, 4096), dropout=0.5),
            optimiser="adam",
            peak_lr=1e-3,
            epochs=5,
            batch_size=64,
        ),
        prediction=ONE_VIEW,
    )


def vgg16_last_layer() -> Recipe:
    """VGG16, its last layer alone replaced and trained by SGD at .001, on kept features of the layer before.

    The tutorial's other trials, each with its accuracy on another test set: SET="training.peak_lr=.00115" .9570, .0012 .9680 (where .001
    gave .9645), SET="training.optimiser=rmsprop" .9840, SET="training.optimiser=adam" .9880. It compared the squash to 224 px with the
    middle 224 px of the photo, which lose heads: SET="pixels.fit=center-crop". ImageNet's mean and std; its LogSoftmax and NLLLoss are
    the binary cross-entropy here. No momentum, one epoch and the batch are ours; dropout is torchvision's, of which the one between the
    frozen layers is off.
    """
    return Recipe(
        name="vgg16_last_layer",
        model=Model(backbone="vgg16.tv_in1k"),
        pixels=SQUASHED,
        training=PLAIN.replace(
            trainable="head",
            head=HeadShape(dropout=0.5),
            optimiser="sgd",
            momentum=0.0,
            peak_lr=1e-3,
            epochs=1,
            batch_size=64,
        ),
        prediction=ONE_VIEW,
    )


def vgg16_finetune() -> Recipe:
    """VGG16, last layer replaced, all layers trained at 96 px: crops after padding by 4 px, flips, own mean and std, steps of the rate.

    20 epochs in batches of 128, as the tutorial trains on STL10-like photos. The rate, .001 of SGD with momentum .9 times .1 every 7
    epochs, is ours: it is that of PyTorch's own transfer-learning tutorial.
    """
    return Recipe(
        name="vgg16_finetune",
        model=Model(backbone="vgg16.tv_in1k"),
        pixels=Pixels(fit="squash", size_px=96, canvas=1.0, normalise="measured"),
        training=PLAIN.replace(
            epochs=20,
            batch_size=128,
            optimiser="sgd",
            peak_lr=1e-3,
            schedule="step",
            decay=0.1,
            step_epochs=7,
            final_lr=0.0,
            crop="pad-and-crop",
            crop_pad_px=4,
            flip=True,
        ),
        prediction=ONE_VIEW,
    )


def vgg16_last_block() -> Recipe:
    """VGG16, its last convolutional block and its classifier trained, the rest frozen: what a tutorial wished for and could not express.

    All numbers are ours: SGD at 1e-4 with momentum .9 is what Keras's blog tunes this block with ("Building powerful image classification
    models using very little data", 2016); it begins from the solved head for the reason given there, lest a random one wreck the block.
    """
    return Recipe(
        name="vgg16_last_block",
        model=Model(backbone="vgg16.tv_in1k"),
        pixels=SQUASHED,
        training=PLAIN.replace(
            trainable="from:features.24",
            epochs=3,
            batch_size=32,
            optimiser="sgd",
            peak_lr=1e-4,
            head_start=True,
            flip=True,
        ),
        prediction=ONE_VIEW,
    )


def inception_bottleneck() -> Recipe:
    """InceptionV3, frozen; one layer on its 2048 kept features, by SGD while the rate falls from .1 to .001; validation and test apart.

    10,000 steps of 100 photos are 50 epochs of the 80 % of 25,000 photos that neither validation nor test holds out. The batch is that of
    TensorFlow's retrain.py, from which the method comes.
    """
    return Recipe(
        name="inception_bottleneck",
        model=Model(backbone="inception_v3.tf_in1k"),
        pixels=Pixels(fit="squash", canvas=1.0),
        folds=Folds(split=(0.1, 0.1)),
        training=PLAIN.replace(
            trainable="head",
            epochs=50,
            batch_size=100,
            optimiser="sgd",
            momentum=0.0,
            peak_lr=0.1,
            schedule="exponential",
            decay=0.01,
            final_lr=0.01,
        ),
        prediction=ONE_VIEW,
    )


def inception_last_blocks() -> Recipe:
    """InceptionV3, first a new head alone, then the last two inception blocks with it; all before them (249 layers to Keras) frozen.

    SGD with momentum .9 and 1e-4 for the blocks is Keras's own example ("Fine-tune InceptionV3 on a new set of classes"), which trains the
    head first too, by RMSprop; here a phase shares its optimiser. Epochs, batch and the head's rate are ours. Every epoch sees the same
    squares, so that the frozen layers need run but once, for 160 kB a photo: SET="training.cached_views=1".
    """
    return Recipe(
        name="inception_last_blocks",
        model=Model(backbone="inception_v3.tf_in1k"),
        pixels=Pixels(fit="squash", canvas=1.0),
        training=PLAIN.replace(
            first=Phase(trainable="head", epochs=1, peak_lr=1e-2),
            trainable="from:Mixed_7b",
            epochs=3,
            batch_size=32,
            optimiser="sgd",
            peak_lr=1e-4,
        ),
        prediction=ONE_VIEW,
    )


def vgg19_block4_svm() -> Recipe:
    """VGG19 up to the end of its block 4, pooled, under a support vector machine with calibrated probabilities.

    For a small set unlike ImageNet, whose own classes the last layers know too well. Kernel and cost are scikit-learn's defaults.
    """
    return Recipe(
        name="vgg19_block4_svm",
        model=Model(backbone="vgg19.tv_in1k", layer="features.27"),
        pixels=SQUASHED,
        training=Svm(),
        prediction=ONE_VIEW,
    )
