//! IDX, the format of MNIST: two zero bytes, the element type, the number of dimensions, the dimensions as
//! big-endian u32, the elements.

use std::path::Path;

use graccl::{Error, Result};

use super::{Dataset, Image, Split, Stored, read};

/// Elements of type u8.
const BYTES: u8 = 8;

/// The dimensions and elements of an IDX file; `N` dimensions of bytes are expected.
fn parse<const N: usize>(bytes: &[u8]) -> Result<([usize; N], &[u8])> {
    let wrong = |what: String| Error::argument(format!("not an IDX file of {N} dimensions of bytes: {what}"));
    let head = 4 + 4 * N;
    if bytes.len() < head {
        return Err(wrong(format!("{} bytes, the header alone has {head}", bytes.len())));
    }
    if bytes[..4] != [0, 0, BYTES, N as u8] {
        let hint = "unpack it first if it ends in .gz";
        return Err(wrong(format!("it begins with {:?}", &bytes[..4])).hint(hint));
    }
    let dims: [usize; N] = std::array::from_fn(|d| {
        let at = 4 + 4 * d;
        u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes")) as usize
    });
    let elements = dims.iter().try_fold(1usize, |product, &d| product.checked_mul(d));
    let data = &bytes[head..];
    if elements != Some(data.len()) {
        let hint = "it is cut short or damaged: get it again";
        return Err(wrong(format!("dimensions {dims:?}, but {} elements", data.len())).hint(hint));
    }
    Ok((dims, data))
}

/// MNIST, or anything in its four files.
pub struct Mnist {
    name: String,
    /// Height, width.
    size: [usize; 2],
    pixels: Vec<u8>,
    labels: Vec<u8>,
    classes: usize,
}

impl Mnist {
    /// Reads `train-images-idx3-ubyte` and `train-labels-idx1-ubyte` of a folder, or the two of `t10k`.
    ///
    /// # Errors
    /// `SystemError` if a file cannot be read, `InvalidArgument` if it is damaged or the two do not belong together.
    pub fn open(dir: &Path, split: Split) -> Result<Mnist> {
        let part = match split {
            Split::Train => "train",
            Split::Test => "t10k",
        };
        let images = dir.join(format!("{part}-images-idx3-ubyte"));
        let labels = dir.join(format!("{part}-labels-idx1-ubyte"));
        let of = |path: &Path, e: Error| e.who(path.display().to_string());
        let bytes = read(&images)?;
        let ([count, height, width], pixels) = parse::<3>(&bytes).map_err(|e| of(&images, e))?;
        let bytes = read(&labels)?;
        let ([marked], marks) = parse::<1>(&bytes).map_err(|e| of(&labels, e))?;
        if count != marked || pixels.is_empty() {
            let what = format!("{count} images of {height}x{width} and {marked} labels");
            return Err(of(&images, Error::argument(what).hint("take both files from the same source")));
        }
        // A test set may lack a class; its labels must still fit the training set's.
        let classes = match split {
            Split::Train => highest(marks),
            Split::Test => Mnist::classes_of_training(dir).unwrap_or(0).max(highest(marks)),
        };
        Ok(Mnist {
            name: images.display().to_string(),
            size: [height, width],
            pixels: pixels.to_vec(),
            labels: marks.to_vec(),
            classes,
        })
    }

    fn classes_of_training(dir: &Path) -> Result<usize> {
        let bytes = read(&dir.join("train-labels-idx1-ubyte"))?;
        Ok(highest(parse::<1>(&bytes)?.1))
    }
}

fn highest(labels: &[u8]) -> usize {
    labels.iter().max().map_or(0, |&l| l as usize + 1)
}

impl Dataset for Mnist {
    fn len(&self) -> usize {
        self.labels.len()
    }
    fn channels(&self) -> usize {
        1
    }
    fn classes(&self) -> usize {
        self.classes
    }
    fn label(&self, i: usize) -> u32 {
        self.labels[i].into()
    }
    fn name(&self, i: usize) -> String {
        format!("image {i} of {}", self.name)
    }
    fn stored(&self, i: usize) -> Result<Stored> {
        let [height, width] = self.size;
        let pixels = self.pixels[i * height * width..][..height * width].to_vec();
        Ok(Stored::Pixels(Image { pixels, shape: [1, height, width] }))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::random::Random;

    /// An IDX file.
    pub fn file(dims: &[u32], data: &[u8]) -> Vec<u8> {
        let mut all = vec![0, 0, BYTES, dims.len() as u8];
        dims.iter().for_each(|d| all.extend(d.to_be_bytes()));
        all.extend(data);
        all
    }

    /// The files of `n` training and `n / 2` test images of 4 x 3 pixels, each of which says its number.
    pub fn write(dir: &Path, n: u32) {
        for (part, n) in [("train", n), ("t10k", n / 2)] {
            let pixels: Vec<u8> = (0..n * 12).map(|p| (p / 12) as u8).collect();
            let labels: Vec<u8> = (0..n).map(|i| (i % 10) as u8).collect();
            std::fs::write(dir.join(format!("{part}-images-idx3-ubyte")), file(&[n, 4, 3], &pixels)).unwrap();
            std::fs::write(dir.join(format!("{part}-labels-idx1-ubyte")), file(&[n], &labels)).unwrap();
        }
    }

    #[test]
    fn images_and_labels() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 30);
        let train = Mnist::open(dir.path(), Split::Train).unwrap();
        assert_eq!((train.len(), train.classes(), train.channels()), (30, 10, 1));
        assert_eq!(train.label(13), 3);
        assert_eq!(train.image(13).unwrap(), Image { pixels: vec![13; 12], shape: [1, 4, 3] });
        assert_eq!(Mnist::open(dir.path(), Split::Test).unwrap().len(), 15);
    }

    #[test]
    fn a_test_set_has_the_classes_of_the_training_set() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 10);
        assert_eq!(Mnist::open(dir.path(), Split::Test).unwrap().classes(), 10);
    }

    #[test]
    fn damaged_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let fails = |words: &[&str]| {
            let e = Mnist::open(dir.path(), Split::Train).err().expect("an error").to_string();
            words.iter().for_each(|w| assert!(e.contains(w), "no \"{w}\" in: {e}"));
        };
        fails(&["train-images-idx3-ubyte", "No such file"]);
        write(dir.path(), 10);
        let images = dir.path().join("train-images-idx3-ubyte");
        std::fs::write(&images, &std::fs::read(&images).unwrap()[..50]).unwrap();
        fails(&["[10, 4, 3], but 34 elements", "train-images", "get it again"]);
        std::fs::write(&images, [0x1f, 0x8b, 8, 0].repeat(9)).unwrap();
        fails(&["begins with [31, 139", ".gz"]);
        std::fs::write(&images, file(&[9, 1, 1], &[0; 9])).unwrap();
        fails(&["9 images of 1x1 and 10 labels"]);
    }

    /// Sizes that overflow, files that are cut, bytes that are changed: an error, or what the file really has.
    #[test]
    fn any_bytes_are_survived() {
        assert!(parse::<3>(&file(&[u32::MAX, u32::MAX, u32::MAX], &[])).is_err());
        let whole = file(&[3, 2, 2], &[7; 12]);
        let mut random = Random::new(1, &[]);
        let mut accepted = 0;
        for _ in 0..100_000 {
            let mut bytes = whole.clone();
            bytes.truncate(random.below(whole.len() + 1).max(random.below(whole.len() + 1)));
            for _ in 0..random.below(3) {
                if !bytes.is_empty() {
                    let at = random.below(bytes.len());
                    bytes[at] = random.below(256) as u8;
                }
            }
            if let Ok((dims, data)) = parse::<3>(&bytes) {
                assert_eq!(dims.iter().product::<usize>(), data.len());
                accepted += 1;
            }
        }
        assert!(accepted > 1000 && accepted < 50_000, "{accepted}");
    }
}
