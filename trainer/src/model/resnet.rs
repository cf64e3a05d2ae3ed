//! ResNet-50, as torchvision has it: the stride of a block is in its 3x3 convolution.

use super::{Builder, Layer, Model};

/// ResNet-50. `width` 64 is the original: channels of the first stage.
pub fn resnet50(input: [usize; 3], classes: usize, width: usize) -> Model {
    let mut b = Builder::new(input, classes);
    let conv = b.conv("conv1", width, [7, 2, 3], false);
    let norm = b.norm("bn1", 1.0);
    let pool = b.max_pool([3, 2, 1]);
    b.stage(vec![conv, norm, Layer::Relu, pool]);
    for (group, blocks) in [3, 4, 6, 3].into_iter().enumerate() {
        for block in 0..blocks {
            let stride = if group > 0 && block == 0 { 2 } else { 1 };
            let name = format!("layer{}.{block}", group + 1);
            let layers = bottleneck(&mut b, &name, width << group, stride, block == 0);
            b.stage(layers);
        }
    }
    let pool = b.mean_pool();
    let fc = b.linear("fc", classes, 0.01);
    b.stage(vec![pool, fc]);
    b.model
}

fn bottleneck(b: &mut Builder, name: &str, width: usize, stride: usize, project: bool) -> Vec<Layer> {
    let before = b.shape;
    let mut body = Vec::new();
    let convs = [(width, [1, 1, 0]), (width, [3, stride, 1]), (width * 4, [1, 1, 0])];
    for (i, (out, geometry)) in convs.into_iter().enumerate() {
        body.push(b.conv(&format!("{name}.conv{}", i + 1), out, geometry, false));
        // A branch that begins as zero lets the block begin as the identity.
        body.push(b.norm(&format!("{name}.bn{}", i + 1), if i == 2 { 0.0 } else { 1.0 }));
        if i < 2 {
            body.push(Layer::Relu);
        }
    }
    let mut shortcut = Vec::new();
    if project {
        b.shape = before;
        shortcut.push(b.conv(&format!("{name}.downsample.0"), width * 4, [1, stride, 0], false));
        shortcut.push(b.norm(&format!("{name}.downsample.1"), 1.0));
    }
    vec![Layer::Residual { body, shortcut }, Layer::Relu]
}
