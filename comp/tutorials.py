"""The methods of four tutorials from which people first learnt to solve this task.

What a tutorial does not say (often epochs, batch and momentum) is marked "ours". All of them end in
two outputs; here it is one logit with binary cross-entropy, which is the same: P(dog) =
sigmoid(b - a) for outputs a and b, with equal losses and gradients (a test shows it). Their best
figure is an accuracy of 98.95 % on another test set of this data.
"""

from comp.recipe import (
    Augmentation,
    FineTune,
    Folds,
    HeadShape,
    Model,
    Phase,
    Pixels,
    Prediction,
    Recipe,
    Svm,
)

# One learning rate for all layers and steps, and no augmentation, decay, average or gradient bound
# that a tutorial does not name.
PLAIN = FineTune(
    optimiser="sgd",
    head_start=False,
    schedule="constant",
    warmup=0.0,
    layer_decay=1.0,
    weight_decay=0.0,
    clip_norm=None,
    ema=0.0,
    augment=Augmentation(crop="center-crop", flip=False, colour=0.0),
)
LAST_LAYER = PLAIN.replace(trainable="head", momentum=0.0)
LAST_BLOCKS = PLAIN.replace(epochs=3, batch_size=32, peak_lr=1e-4)  # as in Keras's examples
VGG16 = Recipe(
    name="vgg16",
    model=Model(backbone="vgg16.tv_in1k"),
    pixels=Pixels(fit="squash", size_px=224, canvas=1.0),  # transforms.Resize((224, 224))
    training=PLAIN,
    prediction=Prediction(views="none"),
)
INCEPTION = VGG16.replace(
    model=Model(backbone="inception_v3.tf_in1k"), pixels=Pixels(fit="squash", canvas=1.0)
)


def vgg16_mlp() -> Recipe:
    """VGG16, convolutions frozen, and an MLP with ReLU and dropout trained by Adam on its features.

    25088-4096-4096-1, mean and std 0.5. Epochs, batch and rate, Adam's own .001, are ours.
    """
    model = Model(backbone="vgg16.tv_in1k", layer="features", pool="flatten")
    pixels = VGG16.pixels.replace(normalise="constants")
    head = HeadShape(widths=(4096, 4096), dropout=0.5)
    adam = PLAIN.replace(trainable="head", head=head, optimiser="adam", peak_lr=1e-3, epochs=5)
    return VGG16.replace(name="vgg16_mlp", model=model, pixels=pixels, training=adam)


def vgg16_last_layer() -> Recipe:
    """VGG16, only its last layer replaced and trained by SGD at .001, on cached features.

    The tutorial's other trials, with accuracies on another test set: SET="training.peak_lr=.00115"
    .9570, .0012 .9680 (.001: .9645), SET="training.optimiser=rmsprop" .9840, adam .9880; and
    SET="pixels.fit=center-crop", which cut off heads. No momentum, one epoch and the batch are
    ours; dropout is torchvision's, without the one between the frozen layers.
    """
    training = LAST_LAYER.replace(head=HeadShape(dropout=0.5), peak_lr=1e-3, epochs=1)
    return VGG16.replace(name="vgg16_last_layer", training=training)


def vgg16_finetune() -> Recipe:
    """VGG16, last layer replaced, all layers trained at 96 px, the rate falling in steps.

    Crops after padding by 4 px, flips, mean and std of the photos themselves, 20 epochs in batches
    of 128. The rate is ours: that of PyTorch's own transfer-learning tutorial.
    """
    augment = Augmentation(crop="pad-and-crop", colour=0.0)
    training = PLAIN.replace(
        epochs=20, batch_size=128, peak_lr=1e-3, schedule="step", final_lr=0.0, augment=augment
    )
    pixels = VGG16.pixels.replace(size_px=96, normalise="measured")
    return VGG16.replace(name="vgg16_finetune", pixels=pixels, training=training)


def vgg16_last_block() -> Recipe:
    """VGG16, its last convolutional block and its classifier trained, the rest frozen.

    What a tutorial wished for. All numbers are ours: SGD at 1e-4 with momentum .9, from a head that
    does not wreck the block, is how Keras's blog tunes it ("Building powerful image classification
    models using very little data", 2016).
    """
    augment = Augmentation(crop="center-crop", colour=0.0)
    training = LAST_BLOCKS.replace(trainable="from:features.24", head_start=True, augment=augment)
    return VGG16.replace(name="vgg16_last_block", training=training)


def inception_bottleneck() -> Recipe:
    """InceptionV3, frozen; one layer on its 2048 cached features, SGD from .1 down to .001.

    With a validation and a test part in place of folds. 50 epochs of 20,000 photos are its 10,000
    steps in batches of 100, those of TensorFlow's retrain.py, from which the method comes.
    """
    training = LAST_LAYER.replace(
        epochs=50, batch_size=100, peak_lr=0.1, schedule="exponential", decay=0.01, final_lr=0.01
    )
    folds = Folds(split=(0.1, 0.1))
    return INCEPTION.replace(name="inception_bottleneck", folds=folds, training=training)


def inception_last_blocks() -> Recipe:
    """InceptionV3, first a new head alone, then the last two inception blocks with it.

    SGD with momentum .9 and 1e-4 for the blocks is Keras's own example ("Fine-tune InceptionV3 on a
    new set of classes"), which trains the head first too, by RMSprop. Epochs, batch and the head's
    rate are ours. SET="training.cached_views=1" runs the frozen layers once, for 160 kB per photo.
    """
    first = Phase(trainable="head", epochs=1, peak_lr=1e-2)
    training = LAST_BLOCKS.replace(first=first, trainable="from:Mixed_7b")
    return INCEPTION.replace(name="inception_last_blocks", training=training)


def vgg19_block4_svm() -> Recipe:
    """VGG19 up to the end of its block 4, pooled, and a support vector machine, calibrated.

    For a small set unlike ImageNet, whose classes the last layers know too well. Kernel and cost
    are scikit-learn's defaults.
    """
    model = Model(backbone="vgg19.tv_in1k", layer="features.27")
    return VGG16.replace(name="vgg19_block4_svm", model=model, training=Svm())


ALL = (
    *(vgg16_mlp, vgg16_last_layer, vgg16_finetune, vgg16_last_block),
    *(inception_bottleneck, inception_last_blocks, vgg19_block4_svm),
)
