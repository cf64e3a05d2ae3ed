//! The process's arena and the mappings of other processes' arenas.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use crate::{Code, Error, Result};

const PAGE: usize = 4096;
const HUGE: usize = 2 << 20;
/// Virtual size. Sparse, so this costs address space only; halved until the machine agrees.
const SIZE: usize = 256 << 30;
const SIZE_MIN: usize = 256 << 20;
/// Part of a limited address space (`ulimit -v`) that the arena may take: those of the other ranks of
/// the host are mapped as well.
const SHARE: usize = 16;

/// Nobody may change the size of an arena, nor these seals.
const SEALS: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;

/// The address space that this process may have, bytes.
fn address_space() -> usize {
    let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: 0 };
    // SAFETY: `limit` is writable; if the call fails it says "unlimited".
    unsafe { libc::getrlimit(libc::RLIMIT_AS, &mut limit) };
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}

/// A piece of the arena: byte offset and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    pub offset: usize,
    pub len: usize,
}

/// The process's shareable memory.
pub struct Arena {
    fd: OwnedFd,
    map: Mapping,
    id: u64,
    space: Mutex<Space>,
}

/// A mapping, unmapped on drop.
struct Mapping {
    base: *mut u8,
    len: usize,
}

// SAFETY: it is an address range; what is done with the bytes is up to the users.
unsafe impl Send for Mapping {}
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(fd: BorrowedFd, len: usize) -> std::io::Result<Mapping> {
        // Reserve with slack to place the mapping on a huge-page boundary.
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: fresh anonymous reservation; replaced below by a fixed mapping inside it.
        let r = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len + HUGE,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if r == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let start = r as usize;
        let base = start.next_multiple_of(HUGE);
        // SAFETY: base..base + len lies inside the reservation made above.
        let m = unsafe {
            libc::mmap(
                base as *mut _,
                len,
                prot,
                libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE,
                fd.as_raw_fd(),
                0,
            )
        };
        if m == libc::MAP_FAILED {
            let e = std::io::Error::last_os_error();
            // SAFETY: our own reservation.
            unsafe { libc::munmap(r, len + HUGE) };
            return Err(e);
        }
        // SAFETY: the two ends of our own reservation that the mapping does not cover.
        unsafe {
            if base > start {
                libc::munmap(r, base - start);
            }
            libc::munmap((base + len) as *mut _, start + HUGE - base);
        }
        Ok(Mapping { base: base as *mut u8, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made in `new`; the owner gives it up.
        unsafe { libc::munmap(self.base as *mut _, self.len) };
    }
}

/// Free and used ranges, by offset.
struct Space {
    free: BTreeMap<usize, usize>,
    /// Start -> (start of the carved range, its length).
    used: BTreeMap<usize, Block>,
    colour: usize,
}

impl Space {
    fn carve(&mut self, len: usize, align: usize) -> Option<Block> {
        let (start, room, offset) = self.free.iter().find_map(|(&s, &l)| {
            let o = s.next_multiple_of(align);
            (o + len <= s + l).then_some((s, l, o))
        })?;
        self.free.remove(&start);
        if offset > start {
            self.free.insert(start, offset - start);
        }
        if offset + len < start + room {
            self.free.insert(offset + len, start + room - offset - len);
        }
        Some(Block { offset, len })
    }

    fn give_back(&mut self, mut b: Block) {
        if let Some((&s, &l)) = self.free.range(..b.offset).next_back()
            && s + l == b.offset
        {
            self.free.remove(&s);
            b = Block { offset: s, len: l + b.len };
        }
        if let Some(l) = self.free.remove(&(b.offset + b.len)) {
            b.len += l;
        }
        self.free.insert(b.offset, b.len);
    }
}

impl Arena {
    fn new() -> Result<Arena> {
        let name = c"graccl";
        // SAFETY: a plain system call with a valid string.
        let raw = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
        if raw < 0 {
            return Err(Error::os("memfd_create failed: no shared memory for this process")
                .hint("raise `ulimit -n` if it says too many open files; the kernel must be 3.17 or newer"));
        }
        // SAFETY: just created, owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        let mut len = SIZE;
        while len > SIZE_MIN && len > address_space() / SHARE {
            len /= 2;
        }
        let map = loop {
            // SAFETY: plain system call on our descriptor.
            let ok = unsafe { libc::ftruncate(raw, len as libc::off_t) } == 0;
            let tried = if ok { Mapping::new(fd.as_fd(), len) } else { Err(std::io::Error::last_os_error()) };
            match tried {
                Ok(m) => break m,
                Err(_) if len > SIZE_MIN => len /= 2,
                Err(e) => {
                    return Err(Error::io("cannot map shared memory", &e)
                        .hint("raise the limit on virtual memory (`ulimit -v`)"));
                }
            }
        };
        // Whoever touches memory beyond the end of a file is killed. So nobody can move this one's.
        // SAFETY: plain system call.
        if unsafe { libc::fcntl(raw, libc::F_ADD_SEALS, SEALS) } != 0 {
            return Err(Error::os("cannot seal shared memory").hint("the kernel must be 3.17 or newer"));
        }
        let mut id = [0; 8];
        getrandom::fill(&mut id)
            .map_err(|e| Error::new(Code::SystemError, format!("no random bytes: {e}")))?;
        let free = BTreeMap::from([(PAGE, len - PAGE)]);
        let space = Mutex::new(Space { free, used: BTreeMap::new(), colour: 0 });
        Ok(Arena { fd, map, id: u64::from_ne_bytes(id), space })
    }

    fn space(&self) -> MutexGuard<'_, Space> {
        // Nothing in here panics half way, so a poisoned lock still guards a sound state.
        self.space.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Address of offset 0.
    pub fn base(&self) -> *mut u8 {
        self.map.base
    }
    /// The first page, 4096 bytes at offset 0. No block ever lies there, and peers find it without being
    /// told an offset. Zero at first.
    pub fn page(&self) -> *mut u8 {
        self.map.base
    }
    /// Virtual size in bytes.
    pub fn size(&self) -> usize {
        self.map.len
    }
    /// Random name of this arena.
    pub fn id(&self) -> u64 {
        self.id
    }
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Zeroed memory at a page boundary; from 2 MiB up, on huge-page ground and (so that two large
    /// buffers never lie a multiple of 256 MiB apart, which makes Zen's L1 way prediction fail) at
    /// a changing page offset in it.
    pub fn alloc(&self, bytes: usize) -> Result<Block> {
        let too_large = || {
            Error::argument(format!("cannot allocate {bytes} bytes of shared memory"))
                .who(format!("the process's arena holds {} bytes", self.size()))
                .hint("allocate less, or free what is no longer used")
        };
        if bytes > self.size() {
            return Err(too_large());
        }
        let mut s = self.space();
        let large = bytes >= HUGE;
        let shift = if large {
            s.colour = (s.colour + 5) % 64;
            s.colour * PAGE
        } else {
            0
        };
        let len = (bytes + shift).next_multiple_of(PAGE);
        let b = s.carve(len, if large { HUGE } else { PAGE }).ok_or_else(too_large)?;
        let offset = b.offset + shift;
        s.used.insert(offset, b);
        Ok(Block { offset, len: bytes })
    }

    /// Gives a block back and its pages to the system; false if `offset` is no live block's start.
    pub fn free(&self, offset: usize) -> bool {
        let mut s = self.space();
        let Some(b) = s.used.remove(&offset) else { return false };
        // The hole reads as zeros, as `alloc` promises. What cannot be zeroed is not handed out again.
        if self.trim(b.offset, b.len).is_ok() {
            s.give_back(b);
        }
        true
    }

    /// Gives the pages under a range back to the system: its content becomes zero, and takes memory again
    /// only where it is written to. `offset` and `len` are bytes, multiples of 4096.
    ///
    /// # Errors
    /// `InvalidArgument` for a range that is not whole pages of the arena, `SystemError`.
    pub fn trim(&self, offset: usize, len: usize) -> Result<()> {
        pages_of(self.map.base, self.map.len, offset, len)?;
        if len == 0 {
            return Ok(());
        }
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: plain system call on our descriptor.
        match unsafe { libc::fallocate(self.fd.as_raw_fd(), mode, offset as libc::off_t, len as libc::off_t) }
        {
            0 => Ok(()),
            _ => Err(Error::os("cannot give shared memory back")),
        }
    }

    /// Offset of `ptr` if `ptr..ptr + len` lies in the arena.
    #[inline]
    pub fn offset_of(&self, ptr: *const u8, len: usize) -> Option<usize> {
        let o = (ptr as usize).wrapping_sub(self.map.base as usize);
        (o < self.map.len && len <= self.map.len - o).then_some(o)
    }
}

/// The address of a range of whole pages in an arena of `size` bytes at `base`.
fn pages_of(base: *mut u8, size: usize, offset: usize, len: usize) -> Result<*mut u8> {
    if offset > size || len > size - offset || !offset.is_multiple_of(PAGE) || !len.is_multiple_of(PAGE) {
        return Err(Error::argument(format!(
            "{len} bytes at {offset} are not whole pages of an arena of {size} bytes"
        )));
    }
    // SAFETY: inside the mapping, as just checked.
    Ok(unsafe { base.add(offset) })
}

/// Asks for 2 MiB pages under `len` bytes of an arena at `p`, where whole ones fit. It takes memory for
/// all of them. A hint: failure is fine.
///
/// # Safety
/// The range is mapped.
pub unsafe fn make_huge(p: *mut u8, len: usize) {
    let start = (p as usize).next_multiple_of(HUGE);
    let end = (p as usize + len) / HUGE * HUGE;
    if start < end {
        // SAFETY: inside the caller's range. MADV_COLLAPSE (25, Linux 6.1) changes no content.
        unsafe { libc::madvise(start as *mut _, end - start, 25) };
    }
}

/// Whether memory behind `fd` can be mapped without fear: a fault in it would kill this process. Says
/// why not.
fn trustworthy(fd: BorrowedFd, len: usize) -> std::result::Result<(), &'static str> {
    // SAFETY: plain system call. Only memory of memfd_create has seals.
    let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
    if seals < 0 || seals & libc::F_SEAL_SHRINK == 0 {
        return Err("a peer's shared memory is not sealed: it could be taken away under us");
    }
    // SAFETY: all-zero structs are valid, and the calls fill them.
    let (st, fs) = unsafe {
        let (mut st, mut fs): (libc::stat, libc::statfs) = std::mem::zeroed();
        if libc::fstat(fd.as_raw_fd(), &mut st) != 0 || libc::fstatfs(fd.as_raw_fd(), &mut fs) != 0 {
            return Err("a peer's shared memory cannot be examined");
        }
        (st, fs)
    };
    if len < PAGE || !len.is_multiple_of(PAGE) || usize::try_from(st.st_size).is_ok_and(|size| size < len) {
        return Err("a peer's shared memory is not of the size it says");
    }
    // A fault that finds no page in the system's pool of huge pages kills as well.
    if fs.f_type == libc::HUGETLBFS_MAGIC {
        return Err("a peer's shared memory is of reserved huge pages");
    }
    Ok(())
}

/// Another process's arena, mapped here (or this process's own, for ranks that are threads).
pub struct PeerArena {
    map: Option<Mapping>,
    base: *mut u8,
    len: usize,
}

// SAFETY: as for `Mapping`.
unsafe impl Send for PeerArena {}
unsafe impl Sync for PeerArena {}

static PEERS: Mutex<Option<HashMap<u64, Weak<PeerArena>>>> = Mutex::new(None);

impl PeerArena {
    /// Maps the arena named `id` of `len` bytes behind `fd`, once per process. For this process's own
    /// arena that is the mapping that exists.
    ///
    /// # Errors
    /// `RemoteError` if the descriptor is not one of an arena of that length. `SystemError`.
    pub fn map(id: u64, len: usize, fd: Option<OwnedFd>) -> Result<Arc<PeerArena>> {
        let own = arena()?;
        if own.id() == id {
            return Ok(Arc::new(PeerArena { map: None, base: own.base(), len: own.size() }));
        }
        let mut peers = PEERS.lock().unwrap_or_else(|e| e.into_inner());
        let peers = peers.get_or_insert_with(HashMap::new);
        peers.retain(|_, p| p.strong_count() > 0);
        if let Some(p) = peers.get(&id).and_then(Weak::upgrade) {
            return Ok(p);
        }
        let fd = fd.ok_or_else(|| Error::internal("a peer on this host sent no memory descriptor"))?;
        if let Err(what) = trustworthy(fd.as_fd(), len) {
            return Err(Error::remote(what).hint("all ranks must run the same version of graccl"));
        }
        let map = Mapping::new(fd.as_fd(), len).map_err(|e| {
            Error::io("cannot map a peer's shared memory", &e)
                .hint("raise the limit on virtual memory (`ulimit -v`)")
        })?;
        let p = Arc::new(PeerArena { base: map.base, len, map: Some(map) });
        peers.insert(id, Arc::downgrade(&p));
        Ok(p)
    }

    /// Address of `offset..offset + len`, if it lies in the arena.
    #[inline]
    pub fn at(&self, offset: usize, len: usize) -> Option<*mut u8> {
        if offset > self.len || len > self.len - offset {
            return None;
        }
        // SAFETY: inside the mapping, as just checked.
        Some(unsafe { self.base.add(offset) })
    }

    /// The owner's [`Arena::page`].
    pub fn page(&self) -> *mut u8 {
        self.base
    }

    /// As [`Arena::trim`], for the owner and all others who map it: nobody may need the content.
    pub fn trim(&self, offset: usize, len: usize) -> Result<()> {
        let p = pages_of(self.base, self.len, offset, len)?;
        // SAFETY: whole pages of a shared mapping that lives as long as `self`. MADV_REMOVE punches a hole
        // into the file behind it, which we no longer have a descriptor of.
        match unsafe { libc::madvise(p.cast(), len, libc::MADV_REMOVE) } {
            0 => Ok(()),
            _ => Err(Error::os("cannot give a peer's shared memory back")),
        }
    }

    /// Whether this is another process's memory.
    pub fn foreign(&self) -> bool {
        self.map.is_some()
    }
}

static OWN: Mutex<Option<(u32, &'static Arena)>> = Mutex::new(None);

/// The process's arena, made at first use. A forked child gets its own.
pub fn arena() -> Result<&'static Arena> {
    let pid = std::process::id();
    let mut own = OWN.lock().unwrap_or_else(|e| e.into_inner());
    match *own {
        Some((p, a)) if p == pid => Ok(a),
        _ => {
            // Lives as long as the process: user memory may be in it until the end.
            let a: &'static Arena = Box::leak(Box::new(Arena::new()?));
            *own = Some((pid, a));
            Ok(a)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_zeroed_disjoint_and_come_back() {
        let a = Arena::new().unwrap();
        let b1 = a.alloc(100).unwrap();
        let b2 = a.alloc(3 << 20).unwrap();
        let b3 = a.alloc(5000).unwrap();
        for (b, c) in [(b1, b2), (b2, b3), (b1, b3)] {
            assert!(b.offset + b.len <= c.offset || c.offset + c.len <= b.offset, "{b:?} {c:?}");
        }
        // SAFETY: our own block.
        unsafe {
            let p = a.base().add(b2.offset);
            std::ptr::write_bytes(p, 7, b2.len);
            assert_eq!(a.offset_of(p, b2.len), Some(b2.offset));
        }
        assert!(a.free(b2.offset));
        assert!(!a.free(b2.offset), "freed twice");
        assert!(!a.free(b1.offset + 1), "not a start");
        let b4 = a.alloc(4 << 20).unwrap();
        // SAFETY: our own block.
        let bytes = unsafe { std::slice::from_raw_parts(a.base().add(b4.offset), b4.len) };
        assert!(bytes.iter().all(|&x| x == 0));
        for b in [b1, b3, b4] {
            assert!(a.free(b.offset));
        }
        assert_eq!(a.space().free, BTreeMap::from([(PAGE, a.size() - PAGE)]), "free ranges merge");
        assert!(a.alloc(a.size() + 1).is_err());
    }

    /// Bytes of memory that an arena really takes.
    fn resident(a: &Arena) -> usize {
        // SAFETY: an all-zero stat is valid, and fstat fills it.
        unsafe {
            let mut st: libc::stat = std::mem::zeroed();
            assert_eq!(libc::fstat(a.fd.as_raw_fd(), &mut st), 0);
            st.st_blocks as usize * 512
        }
    }

    fn peer(a: &Arena) -> Result<Arc<PeerArena>> {
        PeerArena::map(a.id(), a.size(), Some(a.fd.try_clone().unwrap()))
    }

    #[test]
    fn trimmed_memory_is_zero_and_takes_none() {
        let a = Arena::new().unwrap();
        let p = peer(&a).unwrap();
        assert!(p.foreign() && p.page() != a.page(), "mapped a second time");
        let b = a.alloc(64 * PAGE).unwrap();
        let trims: [&dyn Fn(usize, usize) -> Result<()>; 2] = [&|o, l| a.trim(o, l), &|o, l| p.trim(o, l)];
        for trim in trims {
            // SAFETY: our own block, in both mappings.
            let (mine, theirs) = unsafe {
                std::ptr::write_bytes(a.base().add(b.offset), 7, b.len);
                let theirs = p.at(b.offset, b.len).unwrap();
                let slice = |p: *mut u8| std::slice::from_raw_parts(p, b.len);
                (slice(a.base().add(b.offset)), slice(theirs))
            };
            assert_eq!(resident(&a), 64 * PAGE);
            trim(b.offset + PAGE, 62 * PAGE).unwrap();
            assert_eq!(resident(&a), 2 * PAGE, "the first and the last page stay");
            for bytes in [mine, theirs] {
                let page = |i: usize| &bytes[i * PAGE..(i + 1) * PAGE];
                assert!(page(0) == [7; PAGE] && page(63) == [7; PAGE]);
                assert!(bytes[PAGE..63 * PAGE].iter().all(|&x| x == 0));
            }
            for (offset, len) in [(1, PAGE), (0, 1), (a.size(), PAGE), (PAGE, a.size()), (usize::MAX, PAGE)] {
                assert_eq!(trim(offset, len).unwrap_err().code, Code::InvalidArgument, "{len} at {offset}");
            }
            trim(a.size(), 0).unwrap();
        }
    }

    #[test]
    fn only_sealed_memory_of_the_right_size_is_mapped() {
        let a = Arena::new().unwrap();
        let set_size = |len: usize| {
            // SAFETY: plain system call on our descriptor.
            unsafe { libc::ftruncate(a.fd.as_raw_fd(), len as libc::off_t) }
        };
        assert_eq!(set_size(PAGE), -1, "shrunk");
        assert_eq!(set_size(a.size() + PAGE), -1, "grown");
        // SAFETY: plain system call on our descriptor.
        let more = unsafe { libc::fcntl(a.fd.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_WRITE) };
        assert_eq!(more, -1, "sealed against writing by a peer");
        let map = |len: usize, fd: BorrowedFd| {
            let fd = fd.try_clone_to_owned().unwrap();
            // SAFETY: an arena's name is any number.
            PeerArena::map(a.id() ^ len as u64 ^ 1, len, Some(fd)).map(drop)
        };
        map(a.size(), a.fd()).unwrap();
        for len in [0, 1, PAGE + 1, a.size() + PAGE, usize::MAX] {
            let e = map(len, a.fd()).unwrap_err();
            assert!(e.code == Code::RemoteError && e.what.contains("size"), "{len}: {e}");
        }
        let memfd = |flags: libc::c_uint, seals: i32| {
            // SAFETY: system calls with a valid name on a new descriptor that nobody else has.
            unsafe {
                let fd = libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC | flags);
                assert!(fd >= 0, "{}", std::io::Error::last_os_error());
                let fd = OwnedFd::from_raw_fd(fd);
                assert_eq!(libc::ftruncate(fd.as_raw_fd(), HUGE as libc::off_t), 0);
                assert!(seals == 0 || libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) == 0);
                fd
            }
        };
        map(HUGE, memfd(libc::MFD_ALLOW_SEALING, libc::F_SEAL_SHRINK).as_fd()).unwrap();
        let bare = memfd(0, 0);
        let growing = memfd(libc::MFD_ALLOW_SEALING, libc::F_SEAL_GROW);
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        for fd in [bare.as_fd(), growing.as_fd(), file.as_fd()] {
            let e = map(HUGE, fd).unwrap_err();
            assert!(e.code == Code::RemoteError && e.what.contains("sealed"), "{e}");
        }
        let huge = memfd(libc::MFD_ALLOW_SEALING | libc::MFD_HUGETLB, libc::F_SEAL_SHRINK);
        assert!(map(HUGE, huge.as_fd()).unwrap_err().what.contains("huge pages"));
    }

    #[test]
    fn the_first_page_is_nobodys_and_the_own_arena_is_mapped_once() {
        let a = Arena::new().unwrap();
        let all = a.space().carve(a.size() - PAGE, PAGE).unwrap();
        assert_eq!((all.offset, a.page()), (PAGE, a.base()));
        assert!(a.alloc(1).is_err(), "nothing left but the first page");
        assert!(!a.free(0));
        let own = arena().unwrap();
        let p = PeerArena::map(own.id(), own.size(), Some(own.fd.try_clone().unwrap())).unwrap();
        assert!(!p.foreign() && p.page() == own.page() && p.at(0, 1) == Some(own.base()));
    }

    #[test]
    fn user_memory() {
        let p = super::super::alloc(1 << 20).unwrap();
        // SAFETY: ours.
        unsafe {
            p.write(1);
            assert!(super::super::free(p.add(8)).is_err());
            super::super::free(p).unwrap();
            assert!(super::super::free(p).is_err());
            super::super::free(std::ptr::null_mut()).unwrap();
        }
    }
}
