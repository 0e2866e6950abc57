//! Takes requests from clients and passes them on.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::auth::{Refusal, TOKEN_PATH};
use super::fault::Fault;
use super::request_body::{discard_body, relay_body, small_body};
use super::response::{Ending, ResponsePlan, relay_response};
use super::state::ProxyState;
use super::stats::{RequestRecord, Ticket};
use super::wire::Wire;
use crate::http1::{Framing, Head};

/// Serves connections until the runtime ends.
pub(crate) async fn accept(listener: TcpListener, state: Arc<ProxyState>) {
    loop {
        match listener.accept().await {
            // A broken connection is the client's to notice.
            Ok((stream, _)) => drop(tokio::spawn(serve(stream, Arc::clone(&state)))),
            // Out of descriptors: try again when some are free.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn serve(stream: TcpStream, state: Arc<ProxyState>) {
    let mut client = Wire::new(stream);
    let mut upstream = None;
    loop {
        let request = match client.head().await {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(_) => {
                // Clients that try TLS first take this for "no TLS" and continue without it.
                let answer = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n";
                let _ = client.send(answer).await;
                return;
            }
        };
        match one_request(&mut client, &mut upstream, request, &state).await {
            Ok(Ending::KeepOpen) => {}
            Ok(Ending::Reset) => return client.reset(),
            Ok(Ending::Hang) => return client.wait_for_close().await,
            Ok(Ending::Close) | Err(_) => return,
        }
    }
}

async fn one_request(
    client: &mut Wire,
    upstream: &mut Option<Wire>,
    mut request: Head,
    state: &ProxyState,
) -> Result<Ending> {
    let arrived = Instant::now();
    let throttle = *state.throttle.lock();
    let ticket = state.counter.begin(record_of(&request));
    if request.get("expect").is_some() {
        request.remove("expect");
        client.send(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    let keep = !request
        .get("connection")
        .is_some_and(|value| value.eq_ignore_ascii_case("close"))
        && request.word(2) == "HTTP/1.1";
    let bodiless = request.word(0) == "HEAD";
    let mut first_byte = throttle.first_byte;

    let own_answer = own_answer(client, &request, state).await?;
    let fault = match own_answer {
        None => state.rules.lock().meet(&request),
        Some(_) => None,
    };
    let mut plan = ResponsePlan::new(throttle);
    let answer = match (own_answer, fault) {
        (Some(answer), _) => Some(answer),
        (None, None) => None,
        (None, Some(Fault::Reset)) => return Ok(Ending::Reset),
        (None, Some(Fault::Hang)) => return Ok(Ending::Hang),
        (None, Some(Fault::IgnoreRange)) => {
            request.remove("range");
            None
        }
        (None, Some(Fault::Delay(delay))) => {
            first_byte += delay;
            None
        }
        (
            None,
            Some(Fault::Status {
                status,
                headers,
                body,
            }),
        ) => {
            discard_body(client, &request).await?;
            Some(Refusal {
                status,
                fields: headers,
                body,
            })
        }
        (
            None,
            Some(Fault::Redirect {
                status,
                base,
                query,
            }),
        ) => {
            discard_body(client, &request).await?;
            Some(redirect(status, &base, query.as_deref(), request.word(1)))
        }
        (None, Some(fault)) => {
            plan.fault(&fault);
            None
        }
    };
    if let Some(answer) = answer {
        tokio::time::sleep_until(arrived + first_byte).await;
        return send_answer(client, &answer, bodiless, keep, &ticket).await;
    }

    let (mut server, head) = match forward(client, upstream.take(), &request, state).await {
        Ok(answered) => answered,
        Err(error) => {
            // The registry is down: what a gateway in front of it would say.
            let body = format!("{error:#}");
            let answer = Refusal {
                status: 502,
                fields: Vec::new(),
                body,
            };
            return send_answer(client, &answer, bodiless, false, &ticket).await;
        }
    };
    tokio::time::sleep_until(arrived + first_byte).await;
    let ending = relay_response(client, &mut server, head, bodiless, plan, state, &ticket).await?;
    if ending == Ending::KeepOpen {
        *upstream = Some(server);
        return Ok(if keep {
            Ending::KeepOpen
        } else {
            Ending::Close
        });
    }
    Ok(ending)
}

fn record_of(request: &Head) -> RequestRecord {
    RequestRecord {
        method: request.word(0).to_owned(),
        path: request
            .word(1)
            .split('?')
            .next()
            .unwrap_or_default()
            .to_owned(),
        range: request.get("range").map(str::to_owned),
        user_agent: request.get("user-agent").map(str::to_owned),
        authorized: request.get("authorization").is_some(),
        status: 0,
        bytes: 0,
    }
}

/// The token endpoint, and requests without the credentials that are demanded.
async fn own_answer(
    client: &mut Wire,
    request: &Head,
    state: &ProxyState,
) -> Result<Option<Refusal>> {
    if request.word(1).split('?').next() == Some(TOKEN_PATH) {
        let form = String::from_utf8_lossy(&small_body(client, request).await?).into_owned();
        return Ok(Some(state.auth.lock().token(request, &form)));
    }
    let refusal = state.auth.lock().check(request);
    if refusal.is_some() {
        discard_body(client, request).await?;
    }
    Ok(refusal)
}

fn redirect(status: u16, base: &str, query: Option<&str>, target: &str) -> Refusal {
    let mut location = format!("{base}{target}");
    if let Some(query) = query {
        location.push(if target.contains('?') { '&' } else { '?' });
        location.push_str(query);
    }
    let fields = vec![("Location".to_owned(), location)];
    Refusal {
        status,
        fields,
        body: String::new(),
    }
}

async fn send_answer(
    client: &mut Wire,
    answer: &Refusal,
    bodiless: bool,
    keep: bool,
    ticket: &Ticket<'_>,
) -> Result<Ending> {
    let mut head = Head {
        first_line: format!("HTTP/1.1 {} Testkit", answer.status),
        ..Head::default()
    };
    head.fields.clone_from(&answer.fields);
    head.set("Content-Length", answer.body.len().to_string());
    if !keep {
        head.set("Connection", "close");
    }
    let mut response = head.encode();
    if !bodiless {
        response.extend_from_slice(answer.body.as_bytes());
        ticket.sends(answer.body.len() as u64);
    }
    ticket.status(answer.status);
    ticket.answered();
    client.send(&response).await?;
    Ok(if keep {
        Ending::KeepOpen
    } else {
        Ending::Close
    })
}

/// Sends the request to the registry and waits for the head of its response.
async fn forward(
    client: &mut Wire,
    kept: Option<Wire>,
    request: &Head,
    state: &ProxyState,
) -> Result<(Wire, Head)> {
    let has_body =
        request.framing() != Framing::UntilClose && request.framing() != Framing::Length(0);
    // A kept connection may have been closed since; a body could not be sent twice.
    if let Some(mut server) = kept.filter(|_| !has_body)
        && server.send(&request.encode()).await.is_ok()
        && let Ok(Some(head)) = server.head().await
    {
        return Ok((server, head));
    }
    let stream = TcpStream::connect(state.upstream)
        .await
        .context("connect the registry")?;
    let mut server = Wire::new(stream);
    server.send(&request.encode()).await?;
    relay_body(client, Some(&mut server), request).await?;
    loop {
        let head = server
            .head()
            .await?
            .context("the registry closed without a response")?;
        if head.status() >= 200 {
            return Ok((server, head));
        }
    }
}
