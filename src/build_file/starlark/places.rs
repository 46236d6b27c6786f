//! Where an argument of a call is written: looked up only when there is an error to show.

use starlark::syntax::ast::{ArgumentP, AstExpr, AstLiteral, ExprP};
use starlark::syntax::{AstModule, Dialect};

use crate::error::Place;

/// The place of the argument `name` of the call that begins at `call` in this text, or of the
/// string `literal` in it.
pub fn argument(text: &str, call: &Place, name: &str, literal: Option<&str>) -> Option<Place> {
    let ast = AstModule::parse(&call.file, text.to_string(), &Dialect::Standard).ok()?;
    let mut found = None;
    ast.statement().visit_expr(|expression| {
        look(&ast, expression, call, &mut |argument| {
            if let ArgumentP::Named(named, value) = argument
                && named.node == name
            {
                let inner = literal.and_then(|literal| string(value, literal));
                found = Some(super::place(&ast.file_span(inner.map_or(named.span, |inner| inner.span))));
            }
        })
    });
    found
}

fn look(ast: &AstModule, expression: &AstExpr, call: &Place, take: &mut dyn FnMut(&starlark::syntax::ast::Argument)) {
    if let ExprP::Call(_, arguments) = &expression.node {
        let begin = ast.file_span(expression.span).resolve_span().begin;
        if (begin.line + 1, begin.column + 1) == (call.line, call.column) {
            arguments.args.iter().for_each(|argument| take(&argument.node));
            return;
        }
    }
    expression.visit_expr(|inner| look(ast, inner, call, take));
}

fn string<'a>(expression: &'a AstExpr, text: &str) -> Option<&'a AstExpr> {
    if let ExprP::Literal(AstLiteral::String(literal)) = &expression.node
        && literal.node == text
    {
        return Some(expression);
    }
    let mut found = None;
    expression.visit_expr(|inner| {
        if found.is_none() {
            found = string(inner, text);
        }
    });
    found
}
