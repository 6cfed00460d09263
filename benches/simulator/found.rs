//! The format of recorded lookups: one text a line.

/// What lookups find along one text: at each position of the model's own greedy text, what is proposed for it and what
/// follows. And what an exit block says there, if there is one.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct Lookups {
    pub found: Vec<Option<Found>>,
    /// Confidence of its draft at each position.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub confidence: Vec<f32>,
    /// Per position, `1` where its draft is the model's own token, else `0`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub accepted: String,
}

/// What a lookup found.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct Found {
    /// Tokens that the text goes on with.
    pub right: usize,
    /// Tokens that match before the first one; before each further one, one more.
    pub matched: usize,
    /// What the tokens rest on.
    pub places: Vec<Run>,
    /// Whether the exit block's draft in the place of the first wrong token is that very token.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fooled: bool,
}

/// So many tokens in a row that rest on so many places, which are so many percent of those found.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct Run(pub usize, pub u8, pub usize);
