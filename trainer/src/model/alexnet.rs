//! AlexNet in one tower.

use graccl::{Error, Result};

use super::{Builder, Layer, Model};

/// Where AlexNet has batch normalisations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlexNorms {
    None,
    /// After the last pooling layer.
    Pool5,
    /// After the convolutions 1 to 4 too.
    All,
}

/// Below this a side does not last through the original's first convolution and three poolings.
const ORIGINAL: usize = 67;
/// As with the small first convolution.
const SMALLEST: usize = 15;

/// AlexNet, without groups, local response normalisation and dropout. `width` 64 is the original (96 to 384
/// channels, 4096 features) and must be even. For images below 67 pixels the first convolution is 5x5 with stride 1.
///
/// # Errors
/// `InvalidArgument` for images of less than 15 pixels on a side.
pub fn alexnet(input: [usize; 3], classes: usize, width: usize, norms: AlexNorms) -> Result<Model> {
    let mut b = Builder::new(input, classes);
    let [_, height, wide] = input;
    let side = height.min(wide);
    if side < SMALLEST {
        return Err(Error::argument(format!("images of {height} x {wide} pixels are too small for AlexNet"))
            .hint(format!("make them {SMALLEST} pixels or larger on each side")));
    }
    let first = if side < ORIGINAL { [5, 1, 2] } else { [11, 4, 0] };
    let same = [3, 1, 1];
    let convs = [
        (width * 3 / 2, first),
        (width * 4, [5, 1, 2]),
        (width * 6, same),
        (width * 6, same),
        (width * 4, same),
    ];
    for (i, (out, geometry)) in convs.into_iter().enumerate() {
        let mut layers = vec![b.conv(&format!("conv{}", i + 1), out, geometry, true)];
        if norms == AlexNorms::All && i < 4 {
            layers.push(b.norm(&format!("bn{}", i + 1), 1.0));
        }
        layers.push(Layer::Relu);
        if matches!(i, 0 | 1 | 4) {
            layers.push(b.max_pool([3, 2, 0]));
        }
        if norms != AlexNorms::None && i == 4 {
            layers.push(b.norm("bn5", 1.0));
        }
        b.stage(layers);
    }
    for name in ["fc6", "fc7"] {
        let features: usize = b.shape.iter().product();
        let deviation = (2.0 / features as f32).sqrt();
        let linear = b.linear(name, width * 64, deviation);
        b.stage(vec![linear, Layer::Relu]);
    }
    let last = b.linear("fc8", classes, 0.01);
    b.stage(vec![last]);
    Ok(b.model)
}
