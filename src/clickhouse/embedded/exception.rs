//! ClickHouse's exceptions: a code, a text, and the HTTP status that goes with it.

use axum::http::StatusCode;

/// An exception as ClickHouse words it: `Code: N. DB::Exception: … (NAME)`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Exception {
    pub code: u32,
    text: String,
}

impl Exception {
    pub fn new(code: u32, name: &str, message: impl std::fmt::Display) -> Self {
        Self {
            code,
            text: format!("Code: {code}. DB::Exception: {message}. ({name})"),
        }
    }

    /// The text that the engine returned, which begins with the code.
    pub fn from_engine(text: String) -> Self {
        let code = text
            .strip_prefix("Code: ")
            .and_then(|rest| rest.split_once('.'))
            .and_then(|(code, _)| code.parse().ok());
        match code {
            Some(code) => Self { code, text },
            None => Self::new(1001, "STD_EXCEPTION", text),
        }
    }

    /// What a client reads: the engine leaves the version out of some of its texts.
    pub fn body(&self, version: &str) -> String {
        let text = &self.text;
        if text.ends_with(&format!("(version {version})")) {
            format!("{text}\n")
        } else {
            format!("{text} (version {version})\n")
        }
    }

    /// As in ClickHouse's `exceptionCodeToHTTPStatus.cpp`.
    pub fn status(&self) -> StatusCode {
        match self.code {
            // REQUIRED_PASSWORD
            194 => StatusCode::UNAUTHORIZED,
            // UNKNOWN_USER, WRONG_PASSWORD, AUTHENTICATION_FAILED,
            // SET_NON_GRANTED_ROLE, ACCESS_DENIED
            192 | 193 | 516 | 512 | 497 => StatusCode::FORBIDDEN,
            // CANNOT_PARSE_*, syntax, types and values
            6 | 25 | 26 | 27 | 38 | 41 | 72 | 376 | 441 | 675 | 676 => StatusCode::BAD_REQUEST,
            // THERE_IS_NO_COLUMN, DUPLICATE_COLUMN, BAD_ARGUMENTS, UNKNOWN_ELEMENT_IN_AST,
            // ILLEGAL_COLUMN, TYPE_MISMATCH, SYNTAX_ERROR, INCORRECT_DATA,
            // UNKNOWN_TYPE_OF_AST_NODE, TOO_DEEP_AST, TOO_BIG_AST,
            // UNEXPECTED_AST_STRUCTURE, VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE,
            // CANNOT_COMPILE_REGEXP
            8 | 15 | 36 | 37 | 44 | 53 | 62 | 117 | 123 | 167 | 168 | 223 | 321 | 427 => {
                StatusCode::BAD_REQUEST
            }
            // UNKNOWN_FUNCTION, _IDENTIFIER, _TYPE, _STORAGE, _TABLE, _AGGREGATE_FUNCTION,
            // _FORMAT, _TYPE_OF_QUERY, _DATABASE, _SETTING, _DIRECTION_OF_SORTING,
            // _DATABASE_ENGINE, _ROLE
            46 | 47 | 50 | 56 | 60 | 63 | 73 | 78 | 81 | 115 | 152 | 336 | 511 => {
                StatusCode::NOT_FOUND
            }
            // QUERY_IS_TOO_LARGE
            229 => StatusCode::PAYLOAD_TOO_LARGE,
            // NOT_IMPLEMENTED
            48 => StatusCode::NOT_IMPLEMENTED,
            // CANNOT_OPEN_FILE, SOCKET_TIMEOUT, CANNOT_SCHEDULE_TASK
            76 | 209 | 439 => StatusCode::SERVICE_UNAVAILABLE,
            // HTTP_LENGTH_REQUIRED
            381 => StatusCode::LENGTH_REQUIRED,
            // TIMEOUT_EXCEEDED
            159 => StatusCode::REQUEST_TIMEOUT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_read_from_the_engines_text() {
        let text = "Code: 60. DB::Exception: Table default.t does not exist. (UNKNOWN_TABLE)";
        let exception = Exception::from_engine(text.into());
        assert_eq!(exception.code, 60);
        assert_eq!(exception.status(), StatusCode::NOT_FOUND);
        assert_eq!(
            exception.body("26.7.2.1"),
            format!("{text} (version 26.7.2.1)\n")
        );
    }

    #[test]
    fn the_version_is_not_said_twice() {
        let text = "Code: 27. DB::Exception: x. (Y) (version 26.7.2.1)";
        let exception = Exception::from_engine(text.into());
        assert_eq!(exception.body("26.7.2.1"), format!("{text}\n"));
    }

    #[test]
    fn a_text_without_a_code_is_still_an_exception() {
        assert_eq!(Exception::from_engine("send_insert: no".into()).code, 1001);
    }
}
