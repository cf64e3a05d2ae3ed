//! The communicator's lock: cheaper than a mutex where nobody waits, which is nearly always.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A lock that costs one atomic exchange to take and a plain store to give back. Who finds it taken
/// looks again: it is held for microseconds.
pub struct Lock<T> {
    taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached only by the thread that has set `taken`.
unsafe impl<T: Send> Sync for Lock<T> {}

/// The right to the value, until dropped.
pub struct Guard<'a, T> {
    lock: &'a Lock<T>,
}

impl<T> Lock<T> {
    pub fn new(value: T) -> Lock<T> {
        Lock { taken: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    #[inline]
    pub fn lock(&self) -> Guard<'_, T> {
        match self.try_lock() {
            Some(g) => g,
            None => self.wait(),
        }
    }

    #[inline]
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        // Acquire: what the last holder wrote.
        (!self.taken.swap(true, Ordering::Acquire)).then(|| Guard { lock: self })
    }

    #[cold]
    fn wait(&self) -> Guard<'_, T> {
        let mut pause = Duration::from_micros(1);
        let mut tries = 0;
        loop {
            if !self.taken.load(Ordering::Relaxed)
                && let Some(g) = self.try_lock()
            {
                return g;
            }
            tries += 1;
            match tries {
                0..100 => std::hint::spin_loop(),
                100..120 => std::thread::yield_now(),
                _ => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(1));
                }
            }
        }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // Release: for the next holder's acquire.
        self.lock.taken.store(false, Ordering::Release);
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this thread holds the lock.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this thread holds the lock, and the guard is borrowed for it alone.
        unsafe { &mut *self.lock.value.get() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time() {
        let lock = Lock::new((0u64, 0u64));
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..20_000 {
                        let mut g = lock.lock();
                        g.0 += 1;
                        g.1 += 1;
                        assert_eq!(g.0, g.1);
                    }
                });
            }
        });
        assert_eq!(lock.lock().0, 80_000);
    }
}
