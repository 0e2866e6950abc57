//! Entry points of the fuzz targets.

use crate::protocol::{Request, Response};

/// A packet between a holder and its clients: what is read is written and read again as the same.
///
/// # Panics
/// When that does not hold.
pub fn packet(data: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<Request>(data) {
        let again = serde_json::to_vec(&request).map(|bytes| serde_json::from_slice(&bytes));
        assert!(matches!(again, Ok(Ok(again)) if request == again));
    }
    if let Ok(response) = serde_json::from_slice::<Response>(data) {
        let again = serde_json::to_vec(&response).map(|bytes| serde_json::from_slice(&bytes));
        assert!(matches!(again, Ok(Ok(again)) if response == again));
    }
}
