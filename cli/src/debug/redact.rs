//! Leaving secrets out of a text, whatever it is.

use regex::Regex;

/// The text in place of a secret.
const LEFT_OUT: &str = "[left out]";

/// The secrets to leave out.
pub(super) struct Secrets {
    /// The secrets that are known literally.
    known: Vec<String>,
    forms: Vec<Regex>,
}

impl Secrets {
    /// Returns the patterns of a mesh's secrets, and these known ones.
    pub(super) fn new(known: impl IntoIterator<Item = String>) -> Self {
        let forms = [
            // Join tokens.
            r"mwj\d+_[A-Za-z0-9_\-]+",
            // Bearer tokens of the API: 24 bytes in hexadecimal.
            r"\b[0-9a-fA-F]{48}\b",
            r"(?i)\bbearer\s+[A-Za-z0-9._~+/=\-]+",
            // Private keys in PEM, to their end if it is there.
            r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\z)",
            // Fields and settings with such names: `PrivateKey = ...`, `"token": "..."`,
            // `password=...`.
            r#"(?i)\b(?:private_?-?key|preshared_?-?key|secret|password|passwd|token|authorization|api_?-?key)"?\s*[:=]\s*"?[A-Za-z0-9+/=._~\-]{8,}"#,
            // Names and passwords in URLs.
            r"\b[a-z][a-z0-9+.\-]*://[^/\s:@]+:[^/\s@]+@",
        ];
        // The forms are constants, and a test compiles them.
        let forms = forms.iter().filter_map(|form| Regex::new(form).ok()).collect();
        let known = known.into_iter().filter(|secret| secret.len() >= 8).collect();
        Self { known, forms }
    }

    /// The text without them.
    pub(super) fn redact(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in &self.known {
            text = text.replace(secret, LEFT_OUT);
        }
        for form in &self.forms {
            text = form.replace_all(&text, LEFT_OUT).into_owned();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_looks_like_a_secret_is_left_out_and_the_rest_stays() {
        let secrets = Secrets::new(["known-by-heart".to_owned()]);
        assert_eq!(secrets.forms.len(), 6, "every form is one");
        let hex = "0123456789abcdef".repeat(3);
        for (text, gone) in [
            ("joining with mwj1_AbC-9_xyz@mesh.example".to_owned(), "AbC-9_xyz"),
            (format!("authorization: Bearer {hex}"), "0123456789abcdef"),
            (format!("{{\"token\": \"{hex}\"}}"), "0123456789abcdef"),
            ("Bearer eyJhbGciOiJIUzI1NiJ9.e30.sig".to_owned(), "eyJ"),
            (
                "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----\nafter"
                    .to_owned(),
                "MHcCAQEE",
            ),
            ("-----BEGIN PRIVATE KEY-----\nMHcCAQEE cut off".to_owned(), "MHcCAQEE"),
            ("PrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=".to_owned(), "yAnz5TF"),
            ("password=hunter2hunter2".to_owned(), "hunter2"),
            ("https://me:letmein1@registry.example/v2/".to_owned(), "letmein1"),
            ("x known-by-heart y".to_owned(), "known-by-heart"),
        ] {
            let said = secrets.redact(&text);
            assert!(!said.contains(gone) && said.contains(LEFT_OUT), "{text} became {said}");
        }
        // Public keys, fingerprints and the words themselves are no secrets.
        for text in [
            "\"public_key\": \"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\"",
            "session begun node=web-1 revision=17",
            "the join token is unknown",
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        ] {
            assert_eq!(secrets.redact(text), text);
        }
    }
}
