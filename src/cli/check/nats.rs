//! NATS, and each lane's stream, consumer and checkpoint.

use async_nats::jetstream;
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::stream::Stream;

use super::{Findings, Status};
use crate::checkpoint;
use crate::config::{Config, Messaging};
use crate::lane::Lane;
use crate::lane::consume::{self, Durable};
use crate::nats::{self, ConnectError, StreamError, StreamId, StreamSpec};
use crate::tls::Fault;
use crate::versions::{self, Verdict};

pub async fn check(config: &Config, lanes: &[Lane], repair: bool, findings: &mut Findings) {
    let Some(jetstream) = connect(&config.integrations.messaging, findings).await else {
        return;
    };
    for lane in lanes {
        findings.lane = Some(lane.name);
        check_lane(&jetstream, &lane.stream, repair, findings).await;
    }
    findings.lane = None;
}

/// What NATS holds for a lane: the stream, the consumer and the checkpoint.
async fn check_lane(
    jetstream: &jetstream::Context,
    spec: &StreamSpec,
    repair: bool,
    findings: &mut Findings,
) {
    let Some(stream) = check_stream(jetstream, spec, repair, findings).await else {
        return;
    };
    if repair {
        let max_payload = jetstream.client().server_info().max_payload;
        let durable = Durable::new(spec, max_payload);
        repair_consumer(jetstream, &stream, &durable, findings).await;
    }
    check_consumer(jetstream, &stream, spec, findings).await;
}

async fn connect(messaging: &Messaging, findings: &mut Findings) -> Option<jetstream::Context> {
    let address = &messaging.nats_url;
    let client = match nats::connect(messaging).await {
        Ok(client) => client,
        Err(error @ ConnectError::Unreachable { .. }) => {
            let remedy =
                "start NATS with `nats-server --jetstream`, or set integrations.messaging.nats_url";
            findings.add("nats", Status::Unreachable, error.to_string(), remedy);
            return None;
        }
        Err(error) => {
            let remedy = match error {
                ConnectError::Untrusted {
                    fault: Fault::Certificate(_),
                    ..
                } => {
                    "set integrations.messaging.tls_ca_file, and the name that the certificate is for in nats_url"
                }
                ConnectError::Untrusted { .. } => {
                    "set integrations.messaging.nats_url to nats://, or to a port with TLS"
                }
                _ => {
                    "set username and password, token or credentials_file in integrations.messaging"
                }
            };
            findings.add("nats", Status::Failed, error.to_string(), remedy);
            return None;
        }
    };
    let version = client.server_info().version;
    findings.ok("nats", format!("{address}, version {version}"));
    match versions::NATS.judge(&version) {
        Verdict::Fine => {}
        Verdict::Untried(detail) => findings.add("nats", Status::Warning, detail, ""),
        Verdict::TooOld { detail, remedy } => findings.add("nats", Status::Failed, detail, remedy),
    }

    let jetstream = jetstream::new(client);
    if let Err(error) = jetstream.query_account().await {
        let remedy = "enable JetStream: `nats-server --jetstream`, or `jetstream {}` in its configuration and for the account";
        findings.add("jetstream", Status::Failed, error.to_string(), remedy);
        return None;
    }
    findings.ok("jetstream", "enabled");

    Some(jetstream)
}

async fn check_stream(
    jetstream: &jetstream::Context,
    spec: &StreamSpec,
    repair: bool,
    findings: &mut Findings,
) -> Option<Stream> {
    let name = &spec.name;
    // What is wrong with a stream that exists is reported below.
    if repair
        && let Err(error @ StreamError::Refused { .. }) = nats::open_stream(jetstream, spec).await
    {
        findings.add("stream", Status::Failed, error.to_string(), "");
        return None;
    }
    let stream = match nats::find_stream(jetstream, name).await {
        Ok(Some(stream)) => stream,
        Ok(None) => {
            let remedy = "`analytics-server check --repair` creates it, and so does `analytics-server serve`";
            findings.add(
                "stream",
                Status::Failed,
                format!("`{name}` does not exist"),
                remedy,
            );
            return None;
        }
        Err(error) => {
            findings.add("stream", Status::Failed, error.to_string(), "");
            return None;
        }
    };
    let info = stream.cached_info();
    let differences = nats::differences(&info.config, spec);
    if differences.is_empty() {
        let detail = format!(
            "`{name}`, {} messages, sequences {} to {}",
            info.state.messages, info.state.first_sequence, info.state.last_sequence
        );
        findings.ok("stream", detail);
    }
    for difference in differences {
        let status = if difference.fatal {
            Status::Failed
        } else {
            Status::Warning
        };
        let detail = format!(
            "`{name}`: {} is {}, should be {}",
            difference.setting, difference.is, difference.should_be
        );
        findings.add("stream", status, detail, difference.remedy);
    }
    Some(stream)
}

/// Creates the consumer if it is missing, at the checkpoint, so that lag can be watched
/// before the daemon runs, which puts it in place itself.
async fn repair_consumer(
    jetstream: &jetstream::Context,
    stream: &Stream,
    durable: &Durable,
    findings: &mut Findings,
) {
    if stream.consumer_info(&durable.name).await.is_ok() {
        return;
    }
    let id = StreamId::of(stream);
    let committed = match checkpoint::peek(jetstream, &id.name, &durable.name).await {
        Ok(Some(record)) if record.identity_of(&id).is_some() => record.committed,
        _ => 0,
    };
    if let Err(error) = consume::create(stream, durable, committed).await {
        findings.add("consumer", Status::Failed, error.to_string(), "");
    }
}

/// The consumer and the checkpoint, which together say how far the daemon has got.
async fn check_consumer(
    jetstream: &jetstream::Context,
    stream: &Stream,
    spec: &StreamSpec,
    findings: &mut Findings,
) {
    let name = &spec.consumer;
    match stream.consumer_info(name).await {
        Ok(info) => {
            let detail = format!(
                "`{name}`, {} messages to come, {} not acknowledged",
                info.num_pending, info.num_ack_pending
            );
            findings.ok("consumer", detail);
        }
        Err(error) => {
            let missing = error.kind() == ConsumerInfoErrorKind::NotFound;
            if missing {
                let remedy = "`analytics-server serve` puts it in place, and so does `analytics-server check --repair`";
                let detail = format!("`{name}` does not exist yet");
                findings.add("consumer", Status::Warning, detail, remedy);
            } else {
                findings.add("consumer", Status::Failed, error.to_string(), "");
            }
        }
    }
    match checkpoint::peek(jetstream, &spec.name, name).await {
        Ok(None) => findings.ok(
            "checkpoint",
            "none: the daemon starts at the stream's beginning, and skips what ClickHouse holds of it",
        ),
        Ok(Some(record)) if record.identity_of(&StreamId::of(stream)).is_none() => {
            let detail = "it is for a stream with another creation time: the daemon starts at this one's \
                 beginning, or continues if it holds the messages of that one";
            findings.add("checkpoint", Status::Warning, detail, "");
        }
        Ok(Some(record)) => {
            let detail = format!(
                "stored up to sequence {}, {} ranges in flight, {}",
                record.committed,
                record.in_flight.len(),
                match record.owner.as_str() {
                    "" => "handed over: no instance is active".to_owned(),
                    owner => format!("owner {owner}"),
                }
            );
            findings.ok("checkpoint", detail);
        }
        Err(error) => findings.add("checkpoint", Status::Failed, error.to_string(), ""),
    }
}
