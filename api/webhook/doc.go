// Package webhook owns what the API server says to webhooks: which admission
// webhooks a request concerns, the messages of AdmissionReview and
// ConversionReview, and the HTTPS connections that carry them.
//
// It knows no objects and no store: the API server hands it what a request is
// about, and the way from a Service to an address. What always holds:
//
//   - a webhook is trusted by its certificate alone, for the name of its Service
//     (NAME.NAMESPACE.svc) or the host of its URL, by its own bundle of CAs;
//   - an answer that is not one to the question that was put is an error.
//
// Matching is of pure functions. A Client keeps connections that it has used
// open for a while; they end by themselves or with the process, and it runs no
// goroutine of its own.
package webhook
