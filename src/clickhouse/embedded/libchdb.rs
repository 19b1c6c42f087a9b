//! libchdb's C functions, wrapped so that the rest of the program needs no `unsafe`.
//!
//! The library is opened at run time, so that neither the build nor ordinary use
//! needs it. It ships no header; the signatures and the ownership rules below are
//! those of libchdb 26.7. A [`Connection`] closes itself, a [`QueryResult`], a
//! [`ResultStream`] and an [`InsertStream`] free themselves, and the borrow of its
//! connection keeps a stream from outliving it. Every call blocks.
#![expect(
    unsafe_code,
    reason = "the one module that calls C; each call says why it is sound"
)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;

use libloading::Symbol;

type RawConnection = *mut c_void;
type RawResult = *mut c_void;
type RawInsert = *mut c_void;

/// Query, format, then the query parameters as parallel arrays and their count.
type Run<T> = unsafe extern "C" fn(
    RawConnection,
    *const c_char,
    usize,
    *const c_char,
    usize,
    *const *const c_char,
    *const usize,
    *const *const c_char,
    *const usize,
    usize,
) -> T;

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot open `{path}`")]
    Unusable {
        path: PathBuf,
        source: libloading::Error,
    },
}

/// libchdb, opened. It is never unloaded: its threads would lose their code.
pub struct Library {
    connect: unsafe extern "C" fn(c_int, *mut *mut c_char) -> *mut RawConnection,
    close: unsafe extern "C" fn(*mut RawConnection),
    shutdown: unsafe extern "C" fn() -> c_int,
    query: Run<RawResult>,
    stream_query: Run<RawResult>,
    stream_fetch: unsafe extern "C" fn(RawConnection, RawResult) -> RawResult,
    stream_cancel: unsafe extern "C" fn(RawConnection, RawResult),
    stream_insert: Run<RawInsert>,
    insert_append: unsafe extern "C" fn(RawInsert, *const c_void, usize) -> c_int,
    insert_done: unsafe extern "C" fn(RawInsert) -> RawResult,
    insert_cancel: unsafe extern "C" fn(RawInsert),
    insert_error: unsafe extern "C" fn(RawInsert) -> *const c_char,
    insert_destroy: unsafe extern "C" fn(RawInsert),
    result_buffer: unsafe extern "C" fn(RawResult) -> *const c_char,
    result_length: unsafe extern "C" fn(RawResult) -> usize,
    result_error: unsafe extern "C" fn(RawResult) -> *const c_char,
    result_rows: unsafe extern "C" fn(RawResult) -> u64,
    result_bytes: unsafe extern "C" fn(RawResult) -> u64,
    result_rows_read: unsafe extern "C" fn(RawResult) -> u64,
    result_bytes_read: unsafe extern "C" fn(RawResult) -> u64,
    result_rows_written: unsafe extern "C" fn(RawResult) -> u64,
    result_bytes_written: unsafe extern "C" fn(RawResult) -> u64,
    result_destroy: unsafe extern "C" fn(RawResult),
}

impl Library {
    /// Opens the library and keeps it from installing signal handlers, which
    /// would take SIGTERM and SIGINT away from this program.
    pub fn open(path: &Path) -> Result<Arc<Self>, OpenError> {
        Self::load(path).map_err(|source| OpenError::Unusable {
            path: path.to_owned(),
            source,
        })
    }

    fn load(path: &Path) -> Result<Arc<Self>, libloading::Error> {
        // SAFETY: the library's initialisers only set up its own globals.
        let library = unsafe { libloading::Library::new(path)? };
        macro_rules! symbol {
            ($name:literal) => {{
                // SAFETY: the field this is assigned to has the C function's type.
                let symbol: Symbol<_> = unsafe { library.get($name)? };
                *symbol
            }};
        }
        let loaded = Self {
            connect: symbol!(b"chdb_connect\0"),
            close: symbol!(b"chdb_close_conn\0"),
            shutdown: symbol!(b"chdb_shutdown\0"),
            query: symbol!(b"chdb_query_with_params_n\0"),
            stream_query: symbol!(b"chdb_stream_query_with_params_n\0"),
            stream_fetch: symbol!(b"chdb_stream_fetch_result\0"),
            stream_cancel: symbol!(b"chdb_stream_cancel_query\0"),
            stream_insert: symbol!(b"chdb_stream_insert_with_params_n\0"),
            insert_append: symbol!(b"chdb_stream_append\0"),
            insert_done: symbol!(b"chdb_stream_done\0"),
            insert_cancel: symbol!(b"chdb_stream_cancel_insert\0"),
            insert_error: symbol!(b"chdb_stream_insert_error\0"),
            insert_destroy: symbol!(b"chdb_destroy_insert_stream\0"),
            result_buffer: symbol!(b"chdb_result_buffer\0"),
            result_length: symbol!(b"chdb_result_length\0"),
            result_error: symbol!(b"chdb_result_error\0"),
            result_rows: symbol!(b"chdb_result_rows_read\0"),
            result_bytes: symbol!(b"chdb_result_bytes_read\0"),
            result_rows_read: symbol!(b"chdb_result_storage_rows_read\0"),
            result_bytes_read: symbol!(b"chdb_result_storage_bytes_read\0"),
            result_rows_written: symbol!(b"chdb_result_rows_written\0"),
            result_bytes_written: symbol!(b"chdb_result_bytes_written\0"),
            result_destroy: symbol!(b"chdb_destroy_query_result\0"),
        };
        let set_signal_handlers: unsafe extern "C" fn(c_int) =
            symbol!(b"chdb_set_signal_handlers_enabled\0");
        // SAFETY: may be called at any time; it sets a flag.
        unsafe { set_signal_handlers(0) };
        std::mem::forget(library);
        Ok(Arc::new(loaded))
    }

    /// Connects with the arguments of `clickhouse local`, such as `--path=DIR`.
    /// The first connection starts the engine (3 s cold), later ones take 0.3 ms.
    /// `None` is all that the library says when it refuses; it writes the reason
    /// to stderr.
    pub fn connect(self: &Arc<Self>, arguments: &[CString]) -> Option<Connection> {
        let mut argv: Vec<*mut c_char> = arguments
            .iter()
            .map(|argument| argument.as_ptr().cast_mut())
            .collect();
        let argc = c_int::try_from(argv.len()).ok()?;
        // SAFETY: `argv` holds `argc` terminated strings, which the library copies.
        let outer = NonNull::new(unsafe { (self.connect)(argc, argv.as_mut_ptr()) })?;
        // SAFETY: what `chdb_connect` returned points at the connection's handle.
        let inner = unsafe { *outer.as_ptr() };
        (!inner.is_null()).then(|| Connection {
            library: Arc::clone(self),
            outer,
            inner,
        })
    }

    /// Joins the engine's threads, once and for all. False if it did not: a
    /// connection is open, or a MergeTree table has been.
    pub fn shutdown(&self) -> bool {
        // SAFETY: may be called at any time; it refuses while a connection is open.
        unsafe { (self.shutdown)() == 0 }
    }
}

/// A statement for the engine.
#[derive(Debug, Clone, Copy)]
pub struct Statement<'a> {
    pub sql: &'a [u8],
    /// The output format, or an insert's input format.
    pub format: &'a str,
    /// Values for `{name:Type}`, escaped as in TabSeparated.
    pub parameters: &'a [(String, String)],
}

impl Statement<'_> {
    fn run<T>(&self, function: Run<T>, connection: &Connection) -> T {
        let pointers = |of: fn(&(String, String)) -> &String| -> (Vec<*const c_char>, Vec<usize>) {
            self.parameters
                .iter()
                .map(|pair| (of(pair).as_ptr().cast(), of(pair).len()))
                .unzip()
        };
        let (names, name_lengths) = pointers(|pair| &pair.0);
        let (values, value_lengths) = pointers(|pair| &pair.1);
        // SAFETY: every pointer comes with its length, all of it outlives the call,
        // the library copies what it keeps, and the connection is open.
        unsafe {
            function(
                connection.inner,
                self.sql.as_ptr().cast(),
                self.sql.len(),
                self.format.as_ptr().cast(),
                self.format.len(),
                names.as_ptr(),
                name_lengths.as_ptr(),
                values.as_ptr(),
                value_lengths.as_ptr(),
                names.len(),
            )
        }
    }
}

/// One connection: its own current database, settings and temporary tables.
pub struct Connection {
    library: Arc<Library>,
    outer: NonNull<RawConnection>,
    inner: RawConnection,
}

// SAFETY: libchdb lets any thread use a connection, one at a time; `&mut self` on
// every use and the absence of `Sync` see to the latter.
unsafe impl Send for Connection {}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: opened by `chdb_connect`, closed once; streams borrow from `self`.
        unsafe { (self.library.close)(self.outer.as_ptr()) };
    }
}

impl Connection {
    /// Runs a statement and waits for its whole result.
    pub fn query(&mut self, statement: Statement<'_>) -> Result<QueryResult, String> {
        QueryResult::new(&self.library, statement.run(self.library.query, self))
    }

    /// Runs a SELECT whose result comes in pieces, each of them a document of its
    /// own in the format (with a header, if the format has one).
    pub fn stream(&mut self, statement: Statement<'_>) -> Result<ResultStream<'_>, String> {
        let raw = statement.run(self.library.stream_query, self);
        let stream = QueryResult::new(&self.library, raw)?;
        Ok(ResultStream {
            connection: self,
            stream,
            finished: false,
        })
    }

    /// Opens an INSERT (without FORMAT, VALUES or SELECT in its text) whose rows follow.
    pub fn insert(&mut self, statement: Statement<'_>) -> Result<InsertStream<'_>, String> {
        let raw = statement.run(self.library.stream_insert, self);
        let insert = InsertStream {
            library: &self.library,
            raw,
            finished: false,
            connection: PhantomData,
        };
        match insert.error() {
            Some(error) => Err(error),
            None => Ok(insert),
        }
    }
}

/// What a statement read and wrote, as ClickHouse counts it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Statistics {
    pub rows_read: u64,
    pub bytes_read: u64,
    pub rows_written: u64,
    pub bytes_written: u64,
    pub result_rows: u64,
    pub result_bytes: u64,
}

/// A result, or a piece of one.
pub struct QueryResult {
    library: Arc<Library>,
    raw: NonNull<c_void>,
}

impl Drop for QueryResult {
    fn drop(&mut self) {
        // SAFETY: owned by this value and freed once.
        unsafe { (self.library.result_destroy)(self.raw.as_ptr()) };
    }
}

impl QueryResult {
    fn new(library: &Arc<Library>, raw: RawResult) -> Result<Self, String> {
        let Some(raw) = NonNull::new(raw) else {
            return Err(
                "Code: 1001. DB::Exception: libchdb returned no result. (STD_EXCEPTION)".into(),
            );
        };
        let result = Self {
            library: Arc::clone(library),
            raw,
        };
        // SAFETY: the result is alive, and so is the text that it owns.
        match unsafe { text((result.library.result_error)(raw.as_ptr())) } {
            Some(error) => Err(error),
            None => Ok(result),
        }
    }

    pub fn bytes(&self) -> &[u8] {
        let raw = self.raw.as_ptr();
        // SAFETY: the result is alive; the buffer belongs to it, as the borrow says.
        unsafe {
            let buffer = (self.library.result_buffer)(raw);
            match (self.library.result_length)(raw) {
                0 => &[],
                _ if buffer.is_null() => &[],
                length => slice::from_raw_parts(buffer.cast(), length),
            }
        }
    }

    /// Rows in this result or piece; zero marks the last piece.
    pub fn rows(&self) -> u64 {
        // SAFETY: the result is alive.
        unsafe { (self.library.result_rows)(self.raw.as_ptr()) }
    }

    pub fn statistics(&self) -> Statistics {
        let raw = self.raw.as_ptr();
        let library = &self.library;
        // SAFETY: the result is alive.
        unsafe {
            Statistics {
                rows_read: (library.result_rows_read)(raw),
                bytes_read: (library.result_bytes_read)(raw),
                rows_written: (library.result_rows_written)(raw),
                bytes_written: (library.result_bytes_written)(raw),
                result_rows: (library.result_rows)(raw),
                result_bytes: (library.result_bytes)(raw),
            }
        }
    }
}

/// A SELECT under way. Dropping it early cancels it.
pub struct ResultStream<'a> {
    connection: &'a mut Connection,
    stream: QueryResult,
    finished: bool,
}

impl ResultStream<'_> {
    /// The next piece, or `None` at the end. The last piece has no rows, but may
    /// have bytes: the header of an empty result, the totals.
    pub fn next_piece(&mut self) -> Result<Option<QueryResult>, String> {
        if self.finished {
            return Ok(None);
        }
        let library = &self.connection.library;
        // SAFETY: connection and stream are alive, and no other call is under way.
        let raw =
            unsafe { (library.stream_fetch)(self.connection.inner, self.stream.raw.as_ptr()) };
        let piece = QueryResult::new(library, raw).inspect_err(|_| self.finished = true)?;
        self.finished = piece.rows() == 0;
        Ok(Some(piece))
    }
}

impl Drop for ResultStream<'_> {
    fn drop(&mut self) {
        if !self.finished {
            let library = &self.connection.library;
            // SAFETY: both are alive. Only between two fetches, never during one: the
            // library deadlocks if another thread cancels then.
            unsafe { (library.stream_cancel)(self.connection.inner, self.stream.raw.as_ptr()) };
        }
    }
}

/// An INSERT whose rows are coming. Dropping it unfinished cancels it.
pub struct InsertStream<'a> {
    library: &'a Arc<Library>,
    raw: RawInsert,
    finished: bool,
    connection: PhantomData<&'a mut Connection>,
}

impl InsertStream<'_> {
    fn error(&self) -> Option<String> {
        // SAFETY: the stream is alive and owns the text.
        unsafe { text((self.library.insert_error)(self.raw)) }
    }

    /// Hands over bytes in the input format, cut anywhere. Blocks while the engine
    /// has enough to do.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), String> {
        // SAFETY: the stream is alive; the library copies the bytes.
        let state =
            unsafe { (self.library.insert_append)(self.raw, bytes.as_ptr().cast(), bytes.len()) };
        if state == 0 {
            return Ok(());
        }
        Err(self
            .error()
            .unwrap_or_else(|| "insert stream failed".into()))
    }

    /// Commits the insert.
    pub fn finish(mut self) -> Result<Statistics, String> {
        self.finished = true;
        // SAFETY: the stream is alive; the result is a new one, owned by the caller.
        let raw = unsafe { (self.library.insert_done)(self.raw) };
        QueryResult::new(self.library, raw).map(|result| result.statistics())
    }
}

impl Drop for InsertStream<'_> {
    fn drop(&mut self) {
        // SAFETY: never null, owned by this value, cancelled at most and freed once.
        unsafe {
            if !self.finished {
                (self.library.insert_cancel)(self.raw);
            }
            (self.library.insert_destroy)(self.raw);
        }
    }
}

/// # Safety
/// `text` is null or a terminated string that lives for the call.
unsafe fn text(text: *const c_char) -> Option<String> {
    if ptr::eq(text, ptr::null()) {
        return None;
    }
    // SAFETY: by this function's contract.
    let text = unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned();
    (!text.is_empty()).then_some(text)
}
