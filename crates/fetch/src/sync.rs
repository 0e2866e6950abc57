//! Locks and atomics of the types whose interleavings are tested.
//!
//! Unit tests use shuttle's, which choose the next thread at each of their operations; such tests
//! run inside `shuttle::check_random`. Everything else uses `parking_lot` and `std`.

#[cfg(not(test))]
pub(crate) use parking_lot::Mutex;
#[cfg(not(test))]
pub(crate) use std::sync::atomic;

#[cfg(test)]
pub(crate) use shuttle::sync::atomic;
#[cfg(test)]
pub(crate) use shuttled::Mutex;

#[cfg(test)]
mod shuttled {
    use std::sync::PoisonError;

    use shuttle::sync::MutexGuard;

    /// Shuttle's mutex with the interface of `parking_lot`'s.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }
}
