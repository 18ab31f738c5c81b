//! What the tests of this crate share: object names that are removed whatever happens.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::object::{DEFAULT_DIR, ObjectDir};

/// Names of this process in the shared memory directory, removed on drop, so also by a panic.
pub(crate) struct TestObjects {
    pub(crate) dir: ObjectDir,
    prefix: String,
}

impl TestObjects {
    /// `label` tells the tests of one process apart.
    pub(crate) fn new(label: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("dmce.test-{}-{label}-{number}-", std::process::id());
        Self { dir: ObjectDir::open(DEFAULT_DIR).unwrap(), prefix }
    }

    pub(crate) fn name(&self, tail: &str) -> String {
        format!("{}{tail}", self.prefix)
    }

    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }
}

impl Drop for TestObjects {
    fn drop(&mut self) {
        for name in self.dir.names(&self.prefix).unwrap_or_default() {
            let _ = self.dir.unlink(&name);
        }
    }
}
