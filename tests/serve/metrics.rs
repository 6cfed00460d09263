//! The page of metrics says what happened.

use crate::prometheus::{assert_grown, parse};
use crate::{Server, TEXT, answers};

#[test]
fn metrics_are_what_happened() {
    let server = Server::start(&["-b", "3"]);
    let before = server.metrics_when(|_| true);
    let requests = answers::requests();
    let replies: Vec<_> = requests.iter().map(|request| server.ok(TEXT, request)).collect();
    assert_eq!(server.post_raw(TEXT, b"{}").status, 400, "which never gets as far as the engine");
    let count = requests.len() as f64;
    let answered = "outcome=\"answered\"";
    let page = server.metrics_when(|page| page.labelled("eesd_requests_ended_total", answered) == count);
    assert_grown(&before, &page);
    let sum = |key: &str| replies.iter().map(|reply| reply["usage"][key].as_f64().unwrap()).sum::<f64>();
    assert_eq!(page.one("eesd_generated_tokens_total"), sum("completion_tokens"));
    assert_eq!(page.one("eesd_prompt_tokens_total"), sum("prompt_tokens"));
    let reused =
        replies.iter().map(|r| r["usage"]["prompt_tokens_details"]["cached_tokens"].as_f64().unwrap()).sum::<f64>();
    assert_eq!(page.one("eesd_prompt_tokens_reused_total"), reused);
    assert_eq!(page.histogram("eesd_time_to_first_token_seconds").2, count);
    assert_eq!((page.one("eesd_batch_size"), page.one("eesd_cache_pages_held")), (3.0, 0.0));

    let (drafted, accepted) = (page.one("eesd_drafted_tokens_total"), page.one("eesd_accepted_tokens_total"));
    assert!(accepted > 0.0);
    assert_eq!(page.one("eesd_spec_decode_num_draft_tokens_total"), drafted);
    assert_eq!(page.one("eesd_spec_decode_num_accepted_tokens_total"), accepted);
    let by_position =
        page.samples.iter().filter(|((name, _), _)| name == "eesd_spec_decode_num_accepted_tokens_per_pos_total");
    let by_position: Vec<(&str, f64)> = by_position.map(|((_, labels), &count)| (labels.as_str(), count)).collect();
    assert_eq!(by_position.iter().map(|(_, count)| count).sum::<f64>(), accepted);
    assert!(by_position.iter().any(|(labels, count)| *labels == "position=\"0\"" && *count > 0.0), "{by_position:?}");
    parse(&server.get("/metrics").body);
}
