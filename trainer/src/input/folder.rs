//! A folder of images, one folder for each class: the layout of ImageNet.

use std::path::{Path, PathBuf};

use graccl::{Error, Result};

use super::{Dataset, Stored, cannot, read};

const ENDINGS: [&str; 3] = ["jpg", "jpeg", "png"];

/// JPEG and PNG files in a folder for each class. Classes are numbered in the order of their names.
pub struct ImageFolder {
    dir: PathBuf,
    classes: Vec<String>,
    /// Class and name of every file.
    files: Vec<(u32, String)>,
}

impl ImageFolder {
    /// Lists the files; they are opened when they are needed. What begins with a dot, or ends in something else
    /// than `.jpg`, `.jpeg` or `.png`, is passed over.
    ///
    /// # Errors
    /// `SystemError` if a folder cannot be listed, `InvalidArgument` if there are no images.
    pub fn open(dir: &Path) -> Result<ImageFolder> {
        let classes = classes(dir)?;
        let mut files = Vec::new();
        for (number, class) in classes.iter().enumerate() {
            let images = names(&dir.join(class))?.into_iter().filter(|n| is_image(n));
            files.extend(images.map(|name| (number as u32, name)));
        }
        if files.is_empty() {
            return Err(Error::argument(format!("no images in the folders of {}", dir.display()))
                .hint("put the JPEG or PNG files of each class into a folder with the class's name"));
        }
        Ok(ImageFolder { dir: dir.into(), classes, files })
    }

    fn path(&self, i: usize) -> PathBuf {
        let (class, name) = &self.files[i];
        self.dir.join(&self.classes[*class as usize]).join(name)
    }
}

impl Dataset for ImageFolder {
    fn len(&self) -> usize {
        self.files.len()
    }
    fn channels(&self) -> usize {
        3
    }
    fn classes(&self) -> usize {
        self.classes.len()
    }
    fn class_name(&self, class: usize) -> String {
        self.classes[class].clone()
    }
    fn label(&self, i: usize) -> u32 {
        self.files[i].0
    }
    fn name(&self, i: usize) -> String {
        self.path(i).display().to_string()
    }
    fn stored(&self, i: usize) -> Result<Stored> {
        read(&self.path(i)).map(Stored::Encoded)
    }
}

fn classes(dir: &Path) -> Result<Vec<String>> {
    Ok(names(dir)?.into_iter().filter(|n| dir.join(n).is_dir()).collect())
}

/// What is in a folder, in the order of the bytes of its names: the same on every rank.
fn names(dir: &Path) -> Result<Vec<String>> {
    let fails = |e: std::io::Error| cannot("list", dir, &e);
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(fails)? {
        let name = entry.map_err(fails)?.file_name().into_string();
        let name = name.map_err(|n| {
            Error::argument(format!("{} is not UTF-8", dir.join(n).display())).hint("rename it")
        })?;
        if !name.starts_with('.') {
            all.push(name);
        }
    }
    all.sort();
    Ok(all)
}

fn is_image(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, e)| ENDINGS.contains(&e.to_ascii_lowercase().as_str()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The bytes of a PNG file.
    pub fn png(width: u32, height: u32, colour: image::ColorType, pixels: &[u8]) -> Vec<u8> {
        use image::ImageEncoder;
        let mut bytes = Vec::new();
        image::codecs::png::PngEncoder::new(&mut bytes)
            .write_image(pixels, width, height, colour.into())
            .unwrap();
        bytes
    }

    /// A PNG file of one colour, in folders that are made.
    pub fn write(path: &Path, value: u8) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, png(6, 4, image::ColorType::Rgb8, &[value; 72])).unwrap();
    }

    #[test]
    fn classes_are_folders_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        write(&at("owl/2.png"), 2);
        write(&at("owl/1.PNG"), 1);
        write(&at("ant/9.png"), 9);
        std::fs::write(at("owl/notes.txt"), "no image").unwrap();
        std::fs::write(at("owl/.hidden.png"), "no image").unwrap();
        std::fs::create_dir(at("yak")).unwrap();
        let all = ImageFolder::open(dir.path()).unwrap();
        assert_eq!((all.len(), all.classes(), all.channels()), (3, 3, 3));
        assert_eq!([0, 1, 2].map(|i| all.label(i)), [0, 1, 1]);
        assert_eq!([0, 1, 2].map(|i| all.image(i).unwrap().pixels[0]), [9, 1, 2]);
        assert_eq!(all.class_name(2), "yak");
        assert!(all.name(1).ends_with("owl/1.PNG"));
    }

    #[test]
    fn jpeg_too() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = Vec::new();
        let grey = vec![100; 3 * 16 * 8];
        image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 95)
            .encode(&grey, 16, 8, image::ExtendedColorType::Rgb8)
            .unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::fs::write(dir.path().join("a/x.jpeg"), bytes).unwrap();
        let image = ImageFolder::open(dir.path()).unwrap().image(0).unwrap();
        assert_eq!(image.shape, [3, 8, 16]);
        assert!(image.pixels.iter().all(|p| p.abs_diff(100) < 3), "{:?}", image.pixels);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let e = ImageFolder::open(dir.path()).err().unwrap().to_string();
        assert!(e.contains("no images") && e.contains(" -> "), "{e}");
        let bad = dir.path().join("a/bad.png");
        write(&bad, 1);
        std::fs::write(&bad, &std::fs::read(&bad).unwrap()[..40]).unwrap();
        let e = ImageFolder::open(dir.path()).unwrap().image(0).unwrap_err().to_string();
        assert!(e.contains("a/bad.png") && e.contains("cannot decode"), "{e}");
    }
}
