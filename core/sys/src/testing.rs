//! What the tests of this crate share: objects whose names are removed whatever happens.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::map::{FileRange, Mapping, Populate, Protection, page_bytes};
use crate::object::{self, DEFAULT_DIR, ObjectDir};

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

/// An object that is mapped.
pub(crate) struct Lent {
    pub(crate) fd: OwnedFd,
    pub(crate) mapping: Mapping,
    pub(crate) objects: TestObjects,
}

/// An object of so many pages, each filled with `fill`, mapped.
pub(crate) fn lend(pages: u64, fill: u8) -> Lent {
    let objects = TestObjects::new("lent");
    let fd = objects.dir.create(&objects.name("a")).unwrap();
    let bytes = pages * page_bytes() as u64;
    object::write_at(fd.as_fd(), &vec![fill; usize::try_from(bytes).unwrap()], 0).unwrap();
    let range = FileRange { offset: 0, bytes };
    let mapping = Mapping::shared(fd.as_fd(), range, Protection::ReadWrite, Populate::Yes).unwrap();
    Lent { fd, mapping, objects }
}

impl Lent {
    /// Truncates the object.
    pub(crate) fn keep_pages(&self, pages: u64) {
        object::truncate(self.fd.as_fd(), pages * page_bytes() as u64).unwrap();
    }
}
