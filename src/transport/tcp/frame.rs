//! The 16-byte frame header.

/// Bytes of a header on the wire.
pub(super) const HEADER: usize = 16;

/// What follows a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A message of `len` bytes on `link`.
    Data = 1,
    /// Nothing: the frame only carries credits.
    Credit = 2,
    /// `len` bytes of the stream of control words.
    Words = 3,
    /// Nothing: that the peer's host confirms it is all that it is for.
    Ask = 4,
}

/// A header; the picture is at the top of the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub fp: u32,
    pub len: u32,
    pub link: u32,
    pub kind: Kind,
    pub credits: u8,
    pub seq: u16,
}

impl Header {
    pub fn encode(&self) -> [u8; HEADER] {
        let mut b = [0; HEADER];
        b[0..4].copy_from_slice(&self.fp.to_le_bytes());
        b[4..8].copy_from_slice(&self.len.to_le_bytes());
        b[8..12].copy_from_slice(&self.link.to_le_bytes());
        b[12] = self.kind as u8;
        b[13] = self.credits;
        b[14..16].copy_from_slice(&self.seq.to_le_bytes());
        b
    }

    /// Fails only for an unknown kind, with a text that says so.
    pub fn decode(b: &[u8; HEADER]) -> Result<Header, String> {
        let kind = match b[12] {
            1 => Kind::Data,
            2 => Kind::Credit,
            3 => Kind::Words,
            4 => Kind::Ask,
            k => return Err(format!("frame of unknown kind {k}")),
        };
        Ok(Header {
            fp: u32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            len: u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
            link: u32::from_le_bytes([b[8], b[9], b[10], b[11]]),
            kind,
            credits: b[13],
            seq: u16::from_le_bytes([b[14], b[15]]),
        })
    }
}
