//! Pieces of HTML. Text can only get into them escaped.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::files::path::is_hidden;

/// A piece of HTML.
#[derive(Debug, Clone, Default)]
pub(super) struct Html(String);

impl Html {
    pub(super) fn into_string(self) -> String {
        self.0
    }
}

impl FromIterator<Html> for Html {
    fn from_iter<I: IntoIterator<Item = Html>>(pieces: I) -> Self {
        Html(pieces.into_iter().map(|piece| piece.0).collect())
    }
}

/// HTML of our own, which is constant.
pub(super) fn constant(html: &'static str) -> Html {
    Html(html.into())
}

/// A text. What would be markup is escaped; what would be invisible or change the direction of
/// writing becomes visible.
pub(super) fn text(text: impl AsRef<str>) -> Html {
    let mut html = String::new();
    for character in text.as_ref().chars() {
        match character {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            '\n' => html.push('\n'),
            hidden if is_hidden(hidden) => html.extend(hidden.escape_default()),
            shown => html.push(shown),
        }
    }
    Html(html)
}

/// An element; an empty class is left out.
pub(super) fn element(name: &'static str, class: &'static str, inside: Html) -> Html {
    let class = match class {
        "" => String::new(),
        class => format!(" class=\"{class}\""),
    };
    Html(format!("<{name}{class}>{}</{name}>\n", inside.0))
}

/// A paragraph of text.
pub(super) fn paragraph(content: impl AsRef<str>) -> Html {
    element("p", "", text(content))
}

/// A table cell. On narrow screens, where tables have no head, its label stands before it.
pub(super) fn cell(label: &str, inside: Html) -> Html {
    if inside.0.is_empty() {
        return constant("<td></td>");
    }
    Html(format!(
        "<td data-label=\"{}\">{}</td>",
        text(label).0,
        inside.0
    ))
}

/// A table with a head.
pub(super) fn table(heads: &[&str], rows: impl IntoIterator<Item = Html>) -> Html {
    let heads = heads.iter().map(|head| element("th", "", text(head)));
    let head = element("thead", "", element("tr", "", heads.collect()));
    let rows = rows.into_iter().map(|row| element("tr", "", row));
    let body = element("tbody", "", rows.collect());
    element("table", "", [head, body].into_iter().collect())
}

/// A list of terms with what belongs to them; pairs without content are left out.
pub(super) fn terms(pairs: impl IntoIterator<Item = (String, Html)>) -> Html {
    let pairs = pairs.into_iter().filter(|(_, inside)| !inside.0.is_empty());
    let pairs =
        pairs.flat_map(|(term, inside)| [element("dt", "", text(term)), element("dd", "", inside)]);
    element("dl", "", pairs.collect())
}

/// A list of texts.
pub(super) fn list(items: impl IntoIterator<Item = Html>) -> Html {
    let items = items.into_iter().map(|item| element("li", "", item));
    element("ul", "", items.collect())
}

/// A hash, in type that can be compared digit by digit.
pub(super) fn hash(digits: &str) -> Html {
    element("span", "hash", text(digits))
}

/// A figure with its caption. The image is part of the page.
pub(super) fn figure(class: &'static str, image: Image<'_>, title: &str, caption: &str) -> Html {
    let (kind, encoded) = match image {
        Image::Svg(svg) => ("svg+xml", BASE64_STANDARD.encode(svg)),
        Image::Png(base64) => ("png", base64.to_owned()),
    };
    // Base64 has no character that is special in an attribute; `validate` has checked pictures.
    let alternative = text(if title.is_empty() { caption } else { title }).0;
    let image = Html(format!(
        "<img alt=\"{alternative}\" src=\"data:image/{kind};base64,{encoded}\">"
    ));
    let caption = element("figcaption", "", text(caption));
    element("figure", class, [image, caption].into_iter().collect())
}

/// An image to put into a page.
#[derive(Debug, Clone, Copy)]
pub(super) enum Image<'a> {
    Svg(&'a str),
    /// Already in base64.
    Png(&'a str),
}
