//! The C interface as a table of pointers: linked into this program, or taken from `libdmce.so`.
//!
//! A call through a pointer costs what a C program's call costs. Calls by name could be inlined
//! here by the linker, which no C program gets. The shared library differs from the linked code in
//! how it reaches its thread-local storage, which matters at 64 bytes: so both can be measured.

use std::ffi::{CStr, CString, c_char, c_void};
use std::hint::black_box;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use dmce::alloc::dmce_addr_t;
use dmce::options::{dmce_alloc_options_t, dmce_options_t};
use dmce::region::dmce_region_t;
use dmce::session::dmce_session_t;
use dmce::version::dmce_status_t;

use crate::{Error, Result};

macro_rules! calls {
    ($($name:ident of $module:ident ($($argument:ty),*) -> $answer:ty;)*) => {
        /// The functions of `libdmce.h` that are measured.
        #[derive(Clone, Copy, Debug)]
        #[allow(missing_docs, reason = "libdmce.h says what each does")]
        pub struct Calls {
            $(pub $name: unsafe extern "C" fn($($argument),*) -> $answer,)*
        }

        impl Calls {
            /// The functions in this program, as in one that was linked with `libdmce.a`.
            #[must_use]
            pub fn linked() -> Self {
                black_box(Self { $($name: dmce::$module::$name,)* })
            }

            /// The functions of a shared library, which stays loaded.
            ///
            /// # Errors
            ///
            /// [`Error::System`] with what the loader says.
            pub fn of_library(path: &Path) -> Result<Self> {
                let library = load(path)?;
                Ok(Self {
                    $($name: {
                        type Call = unsafe extern "C" fn($($argument),*) -> $answer;
                        let symbol = symbol(library, concat!(stringify!($name), "\0"))?;
                        // SAFETY: a function of this name and type, by the contract of libdmce.h;
                        // pointers to functions and to data are of one size on Linux.
                        unsafe { std::mem::transmute::<*mut c_void, Call>(symbol) }
                    },)*
                })
            }
        }
    };
}

calls! {
    dmce_options_init_sized of options (*mut dmce_options_t, usize) -> ();
    dmce_alloc_options_init_sized of options (*mut dmce_alloc_options_t, usize) -> ();
    dmce_open of session (*const dmce_options_t, *mut *mut dmce_session_t) -> dmce_status_t;
    dmce_close of session (*mut dmce_session_t) -> dmce_status_t;
    dmce_malloc of alloc (*mut dmce_session_t, u64, *mut dmce_addr_t) -> dmce_status_t;
    dmce_malloc_ex of alloc
        (*mut dmce_session_t, u64, *const dmce_alloc_options_t, *mut dmce_addr_t) -> dmce_status_t;
    dmce_free of alloc (*mut dmce_session_t, dmce_addr_t) -> dmce_status_t;
    dmce_read of access
        (*mut dmce_session_t, dmce_addr_t, *mut c_void, usize) -> dmce_status_t;
    dmce_write of access
        (*mut dmce_session_t, dmce_addr_t, *const c_void, usize) -> dmce_status_t;
    dmce_cas64 of access (*mut dmce_session_t, dmce_addr_t, u64, u64, *mut u64) -> dmce_status_t;
    dmce_add64 of access (*mut dmce_session_t, dmce_addr_t, u64, *mut u64) -> dmce_status_t;
    dmce_map of map
        (*mut dmce_session_t, dmce_addr_t, usize, u32, *mut *mut c_void) -> dmce_status_t;
    dmce_unmap of map (*mut dmce_session_t, *mut c_void) -> dmce_status_t;
    dmce_vmalloc of map
        (*mut dmce_session_t, u64, *const dmce_alloc_options_t, *mut *mut c_void) -> dmce_status_t;
    dmce_vfree of map (*mut dmce_session_t, *mut c_void) -> dmce_status_t;
    dmce_addr_of of map (*mut dmce_session_t, *const c_void, *mut dmce_addr_t) -> dmce_status_t;
    dmce_ptr_of of map (*mut dmce_session_t, dmce_addr_t, *mut *mut c_void) -> dmce_status_t;
    dmce_region_create of region (
        *mut dmce_session_t, *const c_char, *const c_char, u64,
        *const dmce::region::dmce_region_options_t
    ) -> dmce_status_t;
    dmce_region_open of region
        (*mut dmce_session_t, *const c_char, *const c_char, u32, *mut *mut dmce_region_t)
        -> dmce_status_t;
    dmce_region_close of region (*mut dmce_region_t) -> dmce_status_t;
    dmce_region_addr of region (*mut dmce_region_t, u64, *mut dmce_addr_t) -> dmce_status_t;
    dmce_last_error of version () -> *const c_char;
}

impl Calls {
    /// Turns a status into a result.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] with the library's own text.
    #[inline]
    pub fn check(&self, call: &'static str, status: dmce_status_t) -> Result<()> {
        if status == dmce::version::DMCE_OK { Ok(()) } else { Err(self.failure(call, status)) }
    }

    #[cold]
    fn failure(&self, call: &'static str, status: dmce_status_t) -> Error {
        // SAFETY: takes nothing; answers with a C string of this thread.
        let text = unsafe { (self.dmce_last_error)() };
        // SAFETY: valid until this thread's next failure, so until it is copied here.
        let text = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
        Error::Call { call, status, text }
    }
}

/// Loads a library for good.
pub(crate) fn load(path: &Path) -> Result<*mut c_void> {
    let name = CString::new(path.as_os_str().as_bytes());
    let name = name.map_err(|error| Error::of("naming a library", error))?;
    // SAFETY: a C string; what the library runs when it is loaded is this project's own.
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if library.is_null() { Err(loader_error()) } else { Ok(library) }
}

/// The function of a name that ends with its NUL.
pub(crate) fn symbol(library: *mut c_void, name: &'static str) -> Result<*mut c_void> {
    // SAFETY: a library that is loaded, and a text that the macro has ended with a NUL.
    let symbol = unsafe { libc::dlsym(library, name.as_ptr().cast()) };
    if symbol.is_null() { Err(loader_error()) } else { Ok(symbol) }
}

fn loader_error() -> Error {
    // SAFETY: takes nothing; answers NULL or a C string that the next call of the loader replaces.
    let text = unsafe { libc::dlerror() };
    let text = if text.is_null() {
        "no reason given".to_owned()
    } else {
        // SAFETY: not NULL, see above; copied at once.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    };
    Error::of("loading the shared library", std::io::Error::other(text))
}
