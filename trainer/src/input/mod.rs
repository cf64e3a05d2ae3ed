//! Images from files to batches: read, decoded and augmented in threads of their own, ahead of the step that needs
//! them.
//!
//! ```text
//! files -> Dataset (idx, folder, records) -> Augment -> Loader -> lock-free queues -> the training step
//! ```
//!
//! A [`Dataset`] is a list of labelled images. A [`Loader`] cuts it into batches: shuffled anew for every epoch,
//! shared out over the ranks, the same images with the same crops and flips for the same seed, whatever the number
//! of workers and ranks.

mod augment;
mod folder;
mod idx;
mod loader;
mod records;

use std::path::Path;
use std::sync::Arc;

use graccl::{Code, Error, Result};

pub use augment::Augment;
pub use folder::ImageFolder;
pub use idx::Mnist;
pub use loader::{Batches, Loader, LoaderConfig};
pub use records::Records;

/// Images that are larger than this on a side, or take more memory, are refused.
const LARGEST_SIDE: u32 = 1 << 14;
const LARGEST_IMAGE: u64 = 512 << 20;

/// A share of a step: what one rank trains on.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// `labels.len()` images of `shape`, one after the other, normalised.
    pub images: Vec<f32>,
    pub labels: Vec<u32>,
    /// Channels, height, width.
    pub shape: [usize; 3],
}

/// An image as it is stored: a byte for every channel of every pixel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Plane after plane, row after row.
    pub pixels: Vec<u8>,
    /// Channels, height, width.
    pub shape: [usize; 3],
}

/// An image in the form in which a dataset keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    Pixels(Image),
    /// A JPEG or PNG file.
    Encoded(Vec<u8>),
}

impl Stored {
    /// Pixels: as they are, or three planes of red, green and blue. What is transparent lies on white.
    pub fn decode(self) -> Result<Image> {
        match self {
            Stored::Pixels(image) => Ok(image),
            Stored::Encoded(bytes) => decode(&bytes),
        }
    }
}

/// Which images of a dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    Train,
    Test,
}

/// Labelled images. Worker threads call it at the same time.
pub trait Dataset: Send + Sync {
    fn len(&self) -> usize;
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Of all images: 1 for grey, 3 for colours.
    fn channels(&self) -> usize;
    /// Labels are less than this.
    fn classes(&self) -> usize;
    fn class_name(&self, class: usize) -> String {
        class.to_string()
    }
    fn label(&self, i: usize) -> u32;
    /// What an error calls the image: its file, or the place in it.
    fn name(&self, i: usize) -> String;
    /// Reads the image, without decoding it.
    fn stored(&self, i: usize) -> Result<Stored>;
    /// Reads the image and decodes it.
    fn image(&self, i: usize) -> Result<Image> {
        self.stored(i)?.decode().map_err(|e| e.who(self.name(i)))
    }
}

/// Opens whatever `path` is: a folder with the four files of MNIST; one with `train.records` and `val.records`, or
/// with folders `train` and `val` that have a folder for every class; or, for [`Split::Train`], a records file or a
/// folder of class folders.
///
/// # Errors
/// `InvalidArgument` if it is none of these, or has no images of this split.
pub fn open(path: &Path, split: Split) -> Result<Arc<dyn Dataset>> {
    let part = part(split);
    find(path, split)?.ok_or_else(|| {
        Error::argument(format!("{} has no {part} images", path.display())).hint(
            "give a folder with MNIST's four files, with train.records and val.records, or with train/CLASS/*.jpg and \
             val/CLASS/*.jpg",
        )
    })
}

/// The test images of what [`open`] opened for training, if it has any.
///
/// # Errors
/// Those of [`open`]; `InvalidArgument` if their labels mean other classes than those of `train`.
pub fn open_test(path: &Path, train: &dyn Dataset) -> Result<Option<Arc<dyn Dataset>>> {
    let test = find(path, Split::Test)?;
    if let Some(test) = &test {
        same_classes(train, &**test).map_err(|e| e.who(path.display().to_string()))?;
    }
    Ok(test)
}

fn part(split: Split) -> &'static str {
    match split {
        Split::Train => "train",
        Split::Test => "val",
    }
}

/// `None`: there are none of this split.
fn find(path: &Path, split: Split) -> Result<Option<Arc<dyn Dataset>>> {
    let (training, part) = (split == Split::Train, part(split));
    if path.join("train-images-idx3-ubyte").exists() {
        if training || path.join("t10k-images-idx3-ubyte").exists() {
            return Ok(Some(Arc::new(Mnist::open(path, split)?)));
        }
        return Ok(None);
    }
    let records = path.join(format!("{part}.records"));
    if records.is_file() {
        return Ok(Some(Arc::new(Records::open(&records)?)));
    }
    if path.join(part).is_dir() {
        return Ok(Some(Arc::new(ImageFolder::open(&path.join(part))?)));
    }
    if training && path.is_file() {
        return Ok(Some(Arc::new(Records::open(path)?)));
    }
    if training && path.is_dir() {
        return Ok(Some(Arc::new(ImageFolder::open(path)?)));
    }
    Ok(None)
}

/// Fails if labels of `test` mean other classes than those of `train`.
fn same_classes(train: &dyn Dataset, test: &dyn Dataset) -> Result<()> {
    let names = |d: &dyn Dataset| -> Vec<String> { (0..d.classes()).map(|c| d.class_name(c)).collect() };
    let (trained, tested) = (names(train), names(test));
    let only = |a: &[String], b: &[String]| a.iter().find(|c| !b.contains(c)).cloned();
    let what = if let Some(class) = only(&trained, &tested) {
        format!("only the training images have the class \"{class}\"")
    } else if let Some(class) = only(&tested, &trained) {
        format!("only the test images have the class \"{class}\"")
    } else if trained != tested {
        format!("the classes of the training images are {trained:?}, those of the test images {tested:?}")
    } else if train.channels() != test.channels() {
        format!("training images have {} channels, test images {}", train.channels(), test.channels())
    } else {
        return Ok(());
    };
    Err(Error::argument(what).hint(
        "give both the same classes in the same order: class folders of the same names, empty ones too",
    ))
}

/// Three planes from the bytes of a JPEG or PNG file.
fn decode(bytes: &[u8]) -> Result<Image> {
    let broken = |e: image::ImageError| {
        Error::new(Code::InvalidArgument, format!("cannot decode the image: {e}"))
            .hint("check that the file is a whole JPEG or PNG, or take it away")
    };
    let mut reader = image::ImageReader::new(std::io::Cursor::new(bytes));
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(LARGEST_SIDE);
    limits.max_image_height = Some(LARGEST_SIDE);
    limits.max_alloc = Some(LARGEST_IMAGE);
    reader.limits(limits);
    // By what the file begins with: names lie (ImageNet has a PNG that is called .JPEG).
    let decoded = reader.with_guessed_format().map_err(|e| broken(e.into()))?.decode().map_err(broken)?;
    let (width, height) = (decoded.width() as usize, decoded.height() as usize);
    let mut pixels = vec![0; 3 * width * height];
    let (red, rest) = pixels.split_at_mut(width * height);
    let (green, blue) = rest.split_at_mut(width * height);
    if decoded.color().has_alpha() {
        for (i, p) in decoded.to_rgba8().pixels().enumerate() {
            let over = |v: u8| ((v as u32 * p[3] as u32 + 255 * (255 - p[3] as u32) + 127) / 255) as u8;
            (red[i], green[i], blue[i]) = (over(p[0]), over(p[1]), over(p[2]));
        }
    } else {
        for (i, p) in decoded.to_rgb8().pixels().enumerate() {
            (red[i], green[i], blue[i]) = (p[0], p[1], p[2]);
        }
    }
    Ok(Image { pixels, shape: [3, height, width] })
}

/// A whole file, with its name in the error.
fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| cannot("read", path, &e))
}

fn cannot(what: &str, path: &Path, cause: &std::io::Error) -> Error {
    Error::io(format!("cannot {what} {}", path.display()), cause).hint("check the path and its permissions")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::folder::tests::png;

    #[test]
    fn colours_come_in_planes_and_transparency_is_white() {
        let rgb = png(2, 1, image::ColorType::Rgb8, &[10, 20, 30, 40, 50, 60]);
        assert_eq!(
            Stored::Encoded(rgb).decode().unwrap(),
            Image { pixels: vec![10, 40, 20, 50, 30, 60], shape: [3, 1, 2] }
        );
        let alpha = png(2, 1, image::ColorType::Rgba8, &[10, 20, 30, 0, 100, 0, 200, 128]);
        assert_eq!(Stored::Encoded(alpha).decode().unwrap().pixels, [255, 177, 255, 127, 255, 227]);
        let grey = png(1, 2, image::ColorType::L8, &[7, 9]);
        assert_eq!(
            Stored::Encoded(grey).decode().unwrap(),
            Image { pixels: vec![7, 9, 7, 9, 7, 9], shape: [3, 2, 1] }
        );
    }

    #[test]
    fn an_enormous_image_is_refused_before_it_is_decoded() {
        let mut big = png(1, 1, image::ColorType::L8, &[0]);
        // The header says 2^30 x 2^30 now; its checksum is mended.
        big[16..24].copy_from_slice(&[0x40, 0, 0, 0, 0x40, 0, 0, 0]);
        let crc = crc32fast::hash(&big[12..29]).to_be_bytes();
        big[29..33].copy_from_slice(&crc);
        let e = Stored::Encoded(big).decode().unwrap_err();
        assert!(e.to_string().contains("imit"), "{e}");
    }

    /// Labels that the network has no output for, whatever the form of the data.
    #[test]
    fn test_images_of_other_classes_are_refused() {
        let fails = |dir: &Path, says: &str| {
            let train = open(dir, Split::Train).unwrap();
            let e = open_test(dir, &*train).err().expect("an error").to_string();
            assert!(e.contains(says) && e.contains(" -> "), "{e}");
        };
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let digits = at("digits");
        std::fs::create_dir(&digits).unwrap();
        idx::tests::write(&digits, 10);
        let train = open(&digits, Split::Train).unwrap();
        assert_eq!(open_test(&digits, &*train).unwrap().unwrap().len(), 5);
        let labels = digits.join("t10k-labels-idx1-ubyte");
        std::fs::write(&labels, idx::tests::file(&[5], &[0, 1, 12, 3, 4])).unwrap();
        fails(&digits, "only the test images have the class \"10\"");

        let images = at("images");
        for (path, value) in [("train/ant/1.png", 1), ("train/owl/1.png", 2), ("val/owl/1.png", 3)] {
            folder::tests::write(&images.join(path), value);
        }
        fails(&images, "only the training images have the class \"ant\"");
        std::fs::create_dir(images.join("val/ant")).unwrap();
        let train = open(&images, Split::Train).unwrap();
        assert_eq!(open_test(&images, &*train).unwrap().unwrap().label(0), 1);

        let packed = at("packed");
        std::fs::create_dir(&packed).unwrap();
        Records::pack(&*train, &packed.join("train.records")).unwrap();
        folder::tests::write(&images.join("val/yak/1.png"), 3);
        Records::pack(&*open(&images, Split::Test).unwrap(), &packed.join("val.records")).unwrap();
        fails(&packed, "only the test images have the class \"yak\"");
        Records::pack(&Mnist::open(&digits, Split::Train).unwrap(), &packed.join("val.records")).unwrap();
        fails(&packed, "only the training images have the class \"ant\"");
    }

    #[test]
    fn there_need_be_no_test_images() {
        let dir = tempfile::tempdir().unwrap();
        let images = dir.path().join("images");
        folder::tests::write(&images.join("ant/1.png"), 1);
        let packed = dir.path().join("packed");
        Records::pack(&*open(&images, Split::Train).unwrap(), &packed).unwrap();
        let digits = dir.path().join("digits");
        std::fs::create_dir(&digits).unwrap();
        idx::tests::write(&digits, 10);
        std::fs::remove_file(digits.join("t10k-images-idx3-ubyte")).unwrap();
        for path in [images, packed, digits] {
            let train = open(&path, Split::Train).unwrap();
            assert!(open_test(&path, &*train).unwrap().is_none());
            assert!(open(&path, Split::Test).err().unwrap().to_string().contains("has no val images"));
        }
    }
}
