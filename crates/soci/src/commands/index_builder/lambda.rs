//! `soci index-builder lambda`: the program of a function of AWS Lambda.

use std::sync::Arc;

use clap::Args;

use super::settings::Settings;
use crate::global::Global;

/// Index the images of ECR's events as the program of an AWS Lambda function
///
/// See deploy/index-builder/cloudformation.yaml. Failed calls are repeated by Lambda, and end in
/// its dead-letter queue.
#[derive(Debug, Args)]
pub(crate) struct Lambda {
    #[command(flatten)]
    pub(super) settings: Settings,
}

impl Lambda {
    pub(super) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let indexer = Arc::new(self.settings.indexer(global)?);
        let served = soci_index_builder::serve_lambda(self.settings.policy(), indexer).await;
        soci_telemetry::flush();
        served.map_err(|error| anyhow::anyhow!(error))
    }
}
