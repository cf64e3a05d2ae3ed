//! Many images in one file: for storage that is slow at opening many small ones.
//!
//! Everything is little-endian.
//!
//! ```text
//! at  0   8  "GRACREC\n"
//!     8   4  version, 1
//!    12   4  CRC-32 of the bytes from 16 to the end of the table
//!    16   4  channels: 1 or 3
//!    20   4  classes
//!    24   8  images
//!    32   8  bytes of the class names
//!    40      class names in UTF-8, each with a zero byte at its end
//!            table: for each image
//!              8  offset in the file    4  bytes    4  CRC-32    4  label    4  form: 0 file, 1 pixels
//!            the images: a JPEG or PNG file, or channels, height and width (4 bytes each) and the pixels, plane
//!            after plane
//! ```

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use graccl::{Error, Result};

use super::{Dataset, Image, Stored, cannot};

const MAGIC: &[u8; 8] = b"GRACREC\n";
const VERSION: u32 = 1;
const HEAD: usize = 40;
/// Bytes before what the head's checksum covers.
const UNCHECKED: usize = 16;
const ENTRY: usize = 24;
const ENCODED: u32 = 0;
const PIXELS: u32 = 1;

/// One line of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Entry {
    offset: u64,
    bytes: u32,
    crc: u32,
    label: u32,
    form: u32,
}

/// What is in front of the images.
#[derive(Debug, PartialEq)]
struct Table {
    channels: usize,
    classes: Vec<String>,
    entries: Vec<Entry>,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn damaged(what: impl Into<String>) -> Error {
    Error::argument(what).hint("the file is cut short or damaged: pack it again")
}

/// Bytes of head, names and table, from the head alone. `file` is the file's length: nothing may be longer.
fn table_bytes(head: &[u8; HEAD], file: u64) -> Result<usize> {
    if &head[..8] != MAGIC {
        return Err(Error::argument("not a records file").hint("make one with graccl-train pack"));
    }
    let version = u32_at(head, 8);
    if version != VERSION {
        return Err(Error::argument(format!(
            "a records file of version {version}; this program reads {VERSION}"
        ))
        .hint("pack it again with this program"));
    }
    let (images, names) = (u64_at(head, 24), u64_at(head, 32));
    let table = images.checked_mul(ENTRY as u64).and_then(|t| t.checked_add(names)?.checked_add(HEAD as u64));
    match table {
        Some(n) if n <= file => Ok(n as usize),
        _ => Err(damaged(format!("a table of {images} images does not fit into {file} bytes"))),
    }
}

impl Table {
    /// From head, names and table.
    fn parse(bytes: &[u8], file: u64) -> Result<Table> {
        let head =
            bytes.first_chunk::<HEAD>().ok_or_else(|| damaged(format!("{} bytes only", bytes.len())))?;
        if table_bytes(head, file)? != bytes.len() {
            return Err(damaged("its table has another length than it says"));
        }
        if crc32fast::hash(&bytes[UNCHECKED..]) != u32_at(bytes, 12) {
            return Err(damaged("the table's checksum is wrong"));
        }
        let channels = u32_at(bytes, 16) as usize;
        let names = u64_at(bytes, 32) as usize;
        let (text, table) = bytes[HEAD..].split_at(names);
        let text = std::str::from_utf8(text).map_err(|_| damaged("a class name is not UTF-8"))?;
        let classes: Vec<String> = text.split_terminator('\0').map(String::from).collect();
        if classes.len() != u32_at(bytes, 20) as usize || !matches!(channels, 1 | 3) || table.is_empty() {
            return Err(damaged(format!(
                "{} names, {channels} channels, {} bytes of table",
                classes.len(),
                table.len()
            )));
        }
        let entries: Vec<Entry> = table.chunks_exact(ENTRY).map(Entry::from_bytes).collect();
        let fits = |e: &Entry| e.offset.checked_add(e.bytes.into()).is_some_and(|end| end <= file);
        let known = |e: &Entry| (e.label as usize) < classes.len() && matches!(e.form, ENCODED | PIXELS);
        if let Some(bad) = entries.iter().position(|e| !fits(e) || !known(e)) {
            return Err(damaged(format!("image {bad} cannot be {:?}", entries[bad])));
        }
        Ok(Table { channels, classes, entries })
    }

    fn bytes(&self) -> Vec<u8> {
        let names: String = self.classes.iter().flat_map(|c| [c, "\0"]).collect();
        let mut all = Vec::with_capacity(HEAD + names.len() + ENTRY * self.entries.len());
        all.extend(MAGIC);
        all.extend(VERSION.to_le_bytes());
        all.extend([0; 4]);
        all.extend((self.channels as u32).to_le_bytes());
        all.extend((self.classes.len() as u32).to_le_bytes());
        all.extend((self.entries.len() as u64).to_le_bytes());
        all.extend((names.len() as u64).to_le_bytes());
        all.extend(names.as_bytes());
        for e in &self.entries {
            all.extend(e.offset.to_le_bytes());
            [e.bytes, e.crc, e.label, e.form].iter().for_each(|v| all.extend(v.to_le_bytes()));
        }
        let crc = crc32fast::hash(&all[UNCHECKED..]);
        all[12..16].copy_from_slice(&crc.to_le_bytes());
        all
    }
}

impl Entry {
    fn from_bytes(b: &[u8]) -> Entry {
        Entry {
            offset: u64_at(b, 0),
            bytes: u32_at(b, 8),
            crc: u32_at(b, 12),
            label: u32_at(b, 16),
            form: u32_at(b, 20),
        }
    }

    /// What was read at the entry's place.
    fn image(&self, mut bytes: Vec<u8>) -> Result<Stored> {
        if crc32fast::hash(&bytes) != self.crc {
            return Err(damaged("its checksum is wrong"));
        }
        if self.form == ENCODED {
            return Ok(Stored::Encoded(bytes));
        }
        let shape = (bytes.len() >= 12).then(|| [0, 4, 8].map(|at| u32_at(&bytes, at) as usize));
        let pixels = |s: [usize; 3]| s[0].checked_mul(s[1])?.checked_mul(s[2]);
        match shape {
            Some(shape) if pixels(shape) == Some(bytes.len() - 12) => {
                bytes.drain(..12);
                Ok(Stored::Pixels(Image { pixels: bytes, shape }))
            }
            _ => Err(damaged(format!("{} bytes are not an image of {shape:?}", bytes.len()))),
        }
    }
}

/// A records file: see the module's text. It is read where needed, by several threads without a lock.
pub struct Records {
    name: String,
    file: File,
    table: Table,
}

impl Records {
    /// Reads the table.
    ///
    /// # Errors
    /// `SystemError` if the file cannot be read, `InvalidArgument` if it is damaged or none.
    pub fn open(path: &Path) -> Result<Records> {
        let fails = |e: std::io::Error| cannot("read", path, &e);
        let file = File::open(path).map_err(fails)?;
        let length = file.metadata().map_err(fails)?.len();
        let of = |e: Error| e.who(path.display().to_string());
        if length < HEAD as u64 {
            return Err(of(damaged(format!("{length} bytes only"))));
        }
        let mut head = [0; HEAD];
        file.read_exact_at(&mut head, 0).map_err(fails)?;
        let mut bytes = vec![0; table_bytes(&head, length).map_err(of)?];
        file.read_exact_at(&mut bytes, 0).map_err(fails)?;
        let table = Table::parse(&bytes, length).map_err(of)?;
        Ok(Records { name: path.display().to_string(), file, table })
    }

    /// Writes all images of a dataset, in the form in which it keeps them, to `path`, which appears when it is
    /// whole.
    ///
    /// # Errors
    /// `SystemError` if it cannot be written; those of reading an image.
    pub fn pack(images: &dyn Dataset, path: &Path) -> Result<()> {
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = Path::new(&partial);
        let fails = |e: std::io::Error| cannot("write", partial, &e);
        let unknown = Entry { offset: 0, bytes: 0, crc: 0, label: 0, form: 0 };
        let mut table = Table {
            channels: images.channels(),
            classes: (0..images.classes()).map(|c| images.class_name(c)).collect(),
            entries: vec![unknown; images.len()],
        };
        let mut offset = table.bytes().len() as u64;
        let mut file = std::io::BufWriter::with_capacity(1 << 20, File::create(partial).map_err(fails)?);
        file.seek(SeekFrom::Start(offset)).map_err(fails)?;
        for i in 0..images.len() {
            let (form, bytes) = match images.stored(i)? {
                Stored::Encoded(bytes) => (ENCODED, bytes),
                Stored::Pixels(image) => {
                    let shape = image.shape.iter().flat_map(|&d| (d as u32).to_le_bytes());
                    (PIXELS, shape.chain(image.pixels).collect())
                }
            };
            let length = u32::try_from(bytes.len()).map_err(|_| {
                Error::argument("an image of 4 GiB or more").who(images.name(i)).hint("shrink it")
            })?;
            file.write_all(&bytes).map_err(fails)?;
            let crc = crc32fast::hash(&bytes);
            table.entries[i] = Entry { offset, bytes: length, crc, label: images.label(i), form };
            offset += u64::from(length);
        }
        file.seek(SeekFrom::Start(0)).map_err(fails)?;
        file.write_all(&table.bytes()).map_err(fails)?;
        file.flush().map_err(fails)?;
        std::fs::rename(partial, path).map_err(fails)
    }
}

impl Dataset for Records {
    fn len(&self) -> usize {
        self.table.entries.len()
    }
    fn channels(&self) -> usize {
        self.table.channels
    }
    fn classes(&self) -> usize {
        self.table.classes.len()
    }
    fn class_name(&self, class: usize) -> String {
        self.table.classes[class].clone()
    }
    fn label(&self, i: usize) -> u32 {
        self.table.entries[i].label
    }
    fn name(&self, i: usize) -> String {
        format!("image {i} of {}", self.name)
    }
    fn stored(&self, i: usize) -> Result<Stored> {
        let entry = self.table.entries[i];
        // No more than the file has: that was checked when it was opened.
        let mut bytes = vec![0; entry.bytes as usize];
        self.file
            .read_exact_at(&mut bytes, entry.offset)
            .map_err(|e| Error::io("cannot read", &e).hint("check the disk"))
            .and_then(|()| entry.image(bytes))
            .map_err(|e| e.who(self.name(i)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ImageFolder, Mnist, Split, folder, idx, open};
    use super::*;
    use crate::random::Random;

    fn same(a: &dyn Dataset, b: &dyn Dataset) {
        assert_eq!((a.len(), a.classes(), a.channels()), (b.len(), b.classes(), b.channels()));
        (0..a.classes()).for_each(|c| assert_eq!(a.class_name(c), b.class_name(c)));
        for i in 0..a.len() {
            assert_eq!((a.label(i), a.stored(i).unwrap()), (b.label(i), b.stored(i).unwrap()));
        }
    }

    #[test]
    fn what_was_packed_is_read() {
        let dir = tempfile::tempdir().unwrap();
        idx::tests::write(dir.path(), 20);
        let digits = Mnist::open(dir.path(), Split::Train).unwrap();
        let file = dir.path().join("digits");
        Records::pack(&digits, &file).unwrap();
        same(&digits, &Records::open(&file).unwrap());

        let images = dir.path().join("images");
        folder::tests::write(&images.join("ä/1.png"), 1);
        folder::tests::write(&images.join("owl/2.png"), 2);
        let images = ImageFolder::open(&images).unwrap();
        let both = dir.path().join("both");
        std::fs::create_dir(&both).unwrap();
        Records::pack(&images, &both.join("train.records")).unwrap();
        same(&images, &*open(&both, Split::Train).unwrap());
        assert!(open(&both, Split::Test).err().unwrap().to_string().contains("no val images"));
    }

    #[test]
    fn a_changed_image_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        idx::tests::write(dir.path(), 4);
        let file = dir.path().join("r");
        Records::pack(&Mnist::open(dir.path(), Split::Train).unwrap(), &file).unwrap();
        let mut bytes = std::fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        let all = Records::open(&file).unwrap();
        assert!(all.image(2).is_ok());
        let e = all.image(3).unwrap_err().to_string();
        assert!(e.contains("checksum is wrong") && e.contains("image 3 of") && e.contains(" -> "), "{e}");
        std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
        let e = Records::open(&file).err().unwrap().to_string();
        assert!(e.contains("image 3 cannot be"), "{e}");
    }

    /// Whatever the table says, with a checksum that is right, nothing lies outside the file and no more is
    /// allocated than it has.
    #[test]
    fn any_table_is_survived() {
        let entry = Entry { offset: 200, bytes: 20, crc: 1, label: 1, form: 1 };
        let table = Table { channels: 3, classes: vec!["a".into(), "b".into()], entries: vec![entry; 3] };
        let (whole, file) = (table.bytes(), 300);
        assert_eq!(Table::parse(&whole, file).unwrap(), table);
        let mut random = Random::new(2, &[]);
        let mut accepted = 0;
        for _ in 0..200_000 {
            let mut bytes = whole.clone();
            for _ in 0..=random.below(2) {
                let at = random.below(bytes.len());
                bytes[at] = [0, 255, bytes[at] ^ 1, random.below(256) as u8][random.below(4)];
            }
            let crc = crc32fast::hash(&bytes[UNCHECKED..]).to_le_bytes();
            bytes[12..16].copy_from_slice(&crc);
            if random.below(8) == 0 {
                bytes.truncate(random.below(bytes.len()));
            }
            if let Some(head) = bytes.first_chunk::<HEAD>() {
                assert!(table_bytes(head, file).is_ok_and(|n| n <= 300) || table_bytes(head, file).is_err());
            }
            if let Ok(t) = Table::parse(&bytes, file) {
                t.entries.iter().for_each(|e| assert!(e.offset + u64::from(e.bytes) <= file));
                accepted += 1;
            }
        }
        assert!((1000..150_000).contains(&accepted), "{accepted}");
    }

    #[test]
    fn pixels_must_fill_their_shape() {
        let image = |bytes: Vec<u8>| {
            let crc = crc32fast::hash(&bytes);
            Entry { offset: 0, bytes: bytes.len() as u32, crc, label: 0, form: PIXELS }.image(bytes)
        };
        let shaped = |shape: [u32; 3], n: usize| -> Vec<u8> {
            shape.iter().flat_map(|d| d.to_le_bytes()).chain(vec![5; n]).collect()
        };
        assert_eq!(
            image(shaped([1, 2, 3], 6)).unwrap(),
            Stored::Pixels(Image { pixels: vec![5; 6], shape: [1, 2, 3] })
        );
        for bad in [shaped([1, 2, 3], 5), shaped([u32::MAX; 3], 5), vec![1; 11], vec![]] {
            assert!(image(bad).is_err());
        }
    }
}
