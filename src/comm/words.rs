//! What ranks tell each other outside of collectives: a stream of short words.

use std::collections::VecDeque;

/// A word, about one communicator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// The communicator's context.
    pub ctx: u64,
    pub saying: Saying,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Saying {
    /// "My call number `seq` is this": sent when a wait grows long or a fingerprint differs.
    Call { seq: u32, text: String },
    /// "I failed, and so must you." The text is the error of the rank it began with.
    Abort { code: i32, text: String },
    /// "I destroy this communicator; I have finished all my calls."
    Bye,
    /// "Our links on this port are there": an offset in the sender's arena, or the first number on a TCP
    /// connection.
    Link { port: u32, place: u64 },
    /// "A message of yours with this fingerprint is in my way: of which call is it?"
    Whose { fingerprint: u32 },
    /// "Of this one of mine."
    Mine { fingerprint: u32, seq: u32, text: String },
    /// Part of an agreement between the survivors of a failure.
    Vote { round: u32, ranks: Vec<u32> },
}

/// Longest text of a word; a vote may have as many bytes in ranks.
const WORD_MAX: usize = 60_000;
/// Longest error text that is passed on.
const TEXT_MAX: usize = 2000;
const HEAD: usize = 15;

impl Word {
    /// `length:16 | kind:8 | number:32 | context:64 | body`, little-endian.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, n, body): (u8, u32, Vec<u8>) = match &self.saying {
            Saying::Call { seq, text } => (1, *seq, cut(text)),
            Saying::Abort { code, text } => (2, *code as u32, cut(text)),
            Saying::Bye => (3, 0, Vec::new()),
            Saying::Link { port, place } => (4, *port, place.to_le_bytes().to_vec()),
            Saying::Vote { round, ranks } => {
                let ranks = &ranks[..ranks.len().min(WORD_MAX / 4)];
                (5, *round, ranks.iter().flat_map(|r| r.to_le_bytes()).collect())
            }
            Saying::Whose { fingerprint } => (6, *fingerprint, Vec::new()),
            Saying::Mine { fingerprint, seq, text } => {
                (7, *fingerprint, [&seq.to_le_bytes()[..], &cut(text)].concat())
            }
        };
        let mut b = Vec::with_capacity(HEAD + body.len());
        b.extend((body.len() as u16).to_le_bytes());
        b.push(kind);
        b.extend(n.to_le_bytes());
        b.extend(self.ctx.to_le_bytes());
        b.extend(body);
        b
    }
}

fn cut(text: &str) -> Vec<u8> {
    text.as_bytes()[..text.len().min(TEXT_MAX)].to_vec()
}

/// The byte stream of words: what has arrived so far.
#[derive(Default)]
pub struct Words {
    bytes: VecDeque<u8>,
}

impl Words {
    pub fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// The next complete word; an error if the bytes cannot be one.
    pub fn next(&mut self) -> Result<Option<Word>, ()> {
        if self.bytes.len() < HEAD {
            return Ok(None);
        }
        let b = self.bytes.make_contiguous();
        let len = usize::from(u16::from_le_bytes([b[0], b[1]]));
        let kind = b[2];
        if len > WORD_MAX || !(1..=7).contains(&kind) {
            return Err(());
        }
        if b.len() < HEAD + len {
            return Ok(None);
        }
        let n = u32::from_le_bytes(b[3..7].try_into().map_err(drop)?);
        let ctx = u64::from_le_bytes(b[7..15].try_into().map_err(drop)?);
        let body = &b[HEAD..HEAD + len];
        let text_of = |body: &[u8]| String::from_utf8_lossy(body).into_owned();
        let text = || text_of(body);
        let saying = match kind {
            1 => Saying::Call { seq: n, text: text() },
            2 => Saying::Abort { code: n as i32, text: text() },
            3 => Saying::Bye,
            4 => Saying::Link { port: n, place: u64::from_le_bytes(body.try_into().map_err(drop)?) },
            6 => Saying::Whose { fingerprint: n },
            7 => {
                let (seq, text) = body.split_first_chunk().ok_or(())?;
                Saying::Mine { fingerprint: n, seq: u32::from_le_bytes(*seq), text: text_of(text) }
            }
            _ => {
                if !body.len().is_multiple_of(4) {
                    return Err(());
                }
                let rank = |c: &[u8]| u32::from_le_bytes([c[0], c[1], c[2], c[3]]);
                Saying::Vote { round: n, ranks: body.chunks_exact(4).map(rank).collect() }
            }
        };
        self.bytes.drain(..HEAD + len);
        Ok(Some(Word { ctx, saying }))
    }
}

/// Feeds bytes to the parser, for fuzzing; the first says in which portions they come.
pub fn feed(data: &[u8]) {
    let Some((step, bytes)) = data.split_first() else { return };
    let mut words = Words::default();
    for part in bytes.chunks(usize::from(*step).max(1)) {
        words.add(part);
        loop {
            match words.next() {
                Ok(None) => break,
                Err(()) => return,
                Ok(Some(word)) => {
                    // What one says the other hears, but for bytes that are no text.
                    let mut again = Words::default();
                    again.add(&word.encode());
                    let text = matches!(&word.saying, Saying::Call { text, .. } | Saying::Abort { text, .. } | Saying::Mine { text, .. } if text.contains('\u{fffd}') || text.len() > TEXT_MAX);
                    match again.next() {
                        Ok(Some(heard)) => assert!(text || heard == word, "{word:?}, {heard:?}"),
                        other => panic!("{word:?}, {other:?}"),
                    }
                }
            }
        }
        assert!(words.bytes.len() < HEAD + WORD_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_any_split_and_garbage_is_refused() {
        let said = [
            Saying::Call { seq: 7, text: "all_reduce".into() },
            Saying::Bye,
            Saying::Abort { code: 6, text: "x".repeat(TEXT_MAX) },
            Saying::Link { port: 3, place: 1 << 40 },
            Saying::Vote { round: 2, ranks: vec![0, 7, 5] },
            Saying::Vote { round: 3, ranks: vec![] },
            Saying::Whose { fingerprint: 0xffff_fffe },
            Saying::Mine { fingerprint: 9, seq: u32::MAX, text: "barrier".into() },
        ]
        .map(|saying| Word { ctx: 0x1234_5678_9abc_def0, saying });
        let bytes: Vec<u8> = said.iter().flat_map(Word::encode).collect();
        for step in [1, 2, 3, 7, 1000, bytes.len()] {
            let mut w = Words::default();
            let mut got = Vec::new();
            for c in bytes.chunks(step) {
                w.add(c);
                while let Some(x) = w.next().unwrap() {
                    got.push(x);
                }
            }
            assert_eq!(got, said);
        }
        let mut w = Words::default();
        w.add(b"GET / HTTP/1.1\r\n");
        assert!(w.next().is_err());
        let mut short = Word { ctx: 1, saying: Saying::Link { port: 0, place: 0 } }.encode();
        short[0] = 7;
        let mut w = Words::default();
        w.add(&short);
        assert!(w.next().is_err());
        let mut short =
            Word { ctx: 1, saying: Saying::Mine { fingerprint: 0, seq: 0, text: "".into() } }.encode();
        short[0] = 3;
        let mut w = Words::default();
        w.add(&short);
        assert!(w.next().is_err());
    }
}
