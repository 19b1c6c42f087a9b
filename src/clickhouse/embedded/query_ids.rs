//! The ids of running queries. A client that repeats a query whose connection broke
//! gives it the same id, so that it cannot run alongside its first attempt.
//!
//! They are kept here because the engine takes no ids.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::exception::Exception;

#[derive(Debug, Clone, Default)]
pub struct QueryIds {
    running: Arc<Mutex<HashSet<String>>>,
}

/// An id that is taken until this is dropped.
#[derive(Debug)]
pub struct QueryId {
    id: String,
    ids: QueryIds,
}

impl QueryIds {
    /// Takes an id, in ClickHouse's words if it is taken already.
    pub fn take(&self, id: &str) -> Result<QueryId, Exception> {
        if !self.running().insert(id.to_owned()) {
            return Err(Exception::new(
                216,
                "QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING",
                format_args!("Query with id = {id} is already running"),
            ));
        }
        Ok(QueryId {
            id: id.to_owned(),
            ids: self.clone(),
        })
    }

    fn running(&self) -> MutexGuard<'_, HashSet<String>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for QueryId {
    fn drop(&mut self) {
        self.ids.running().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_until_it_is_dropped() {
        let ids = QueryIds::default();
        let first = ids.take("a").unwrap();
        assert_eq!(
            ids.take("a").unwrap_err().to_string(),
            "Code: 216. DB::Exception: Query with id = a is already running. \
             (QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING)"
        );
        assert!(ids.take("b").is_ok());
        drop(first);
        assert!(ids.take("a").is_ok());
    }
}
