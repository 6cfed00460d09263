//! Pages that outlive the sequence that filled them, found again by the text that they hold.
//!
//! A page is known by its 64 tokens and by the page before it: a tree, whose paths from the root are beginnings of texts.
//! Only pages whose positions are all complete and verified, in every layer, are kept; nobody writes them again. What a
//! position holds depends on the tokens up to it alone (see [`Backend`](crate::backend::Backend)), so a page found for
//! a text holds, bit for bit, what the text's own passes would have put there.

use super::{PAGE_TOKENS, PageId, PagePool};
use crate::TokenId;
use std::collections::{BTreeMap, HashMap};

/// A page kept, by number; 0 is the root, before the first page.
type Node = u64;

/// Full pages by their texts; the least recently used one goes first.
#[derive(Debug, Default)]
pub struct PrefixCache {
    /// By the page before it and its own tokens.
    nodes: HashMap<(Node, Box<[TokenId]>), Node>,
    kept: HashMap<Node, Kept>,
    /// Nodes without pages after them, by their last use; a node's is later than those of all pages after it. Whoever
    /// runs holds few of them: they are the ends of paths.
    ends: BTreeMap<u64, Node>,
    clock: u64,
    last_node: Node,
}

#[derive(Debug)]
struct Kept {
    page: PageId,
    before: Node,
    tokens: Box<[TokenId]>,
    /// Pages that follow it.
    after: usize,
    used: u64,
}

impl PrefixCache {
    /// Pages kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// No page is kept.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// The pages kept of a text's beginning, as many as there are whole pages in `tokens` and known ones among them.
    /// They count as used now.
    pub fn find(&mut self, tokens: &[TokenId]) -> Vec<PageId> {
        let path = self.path(tokens);
        self.touch(&path);
        path.iter().map(|node| self.kept[node].page).collect()
    }

    /// Keeps a page, the last one of `tokens`, which are whole pages; all pages before it must be kept already (else it
    /// is not). Returns the page that stands for that text from now on: this one, of which the cache becomes one more
    /// holder, or another one kept before, with the same bits.
    pub fn keep(&mut self, tokens: &[TokenId], page: PageId, pool: &mut PagePool) -> PageId {
        debug_assert!(!tokens.is_empty() && tokens.len().is_multiple_of(PAGE_TOKENS));
        let (earlier, own) = tokens.split_at(tokens.len() - PAGE_TOKENS);
        let mut path = self.path(earlier);
        if path.len() * PAGE_TOKENS < earlier.len() {
            return page;
        }
        let before = path.last().copied().unwrap_or_default();
        let node = match self.nodes.get(&(before, own.into())) {
            Some(&node) => node,
            None => self.insert(before, own, page, pool),
        };
        path.push(node);
        self.touch(&path);
        self.kept[&node].page
    }

    /// Gives `wanted` pages back that nobody else holds, the least recently used ones first; fewer where there are not
    /// so many.
    pub fn evict(&mut self, wanted: usize, pool: &mut PagePool) {
        // Once the last page of a path is gone the one before it is the last, and was used later: one way through will do.
        let mut passed = 0;
        for _ in 0..wanted {
            let idle = |(_, node): &(&u64, &Node)| pool.is_idle(self.kept[*node].page);
            let Some((&used, &node)) = self.ends.range(passed + 1..).find(idle) else { return };
            passed = used;
            self.forget(node, pool);
        }
    }

    /// Forgets every page.
    pub fn clear(&mut self, pool: &mut PagePool) {
        self.kept.drain().for_each(|(_, kept)| pool.forget(kept.page));
        self.nodes.clear();
        self.ends.clear();
    }

    /// The nodes of the whole pages that `tokens` begin with, as far as they are known.
    fn path(&self, tokens: &[TokenId]) -> Vec<Node> {
        let mut path = Vec::new();
        for own in tokens.chunks_exact(PAGE_TOKENS) {
            let before = path.last().copied().unwrap_or_default();
            match self.nodes.get(&(before, own.into())) {
                Some(&node) => path.push(node),
                None => break,
            }
        }
        path
    }

    fn insert(&mut self, before: Node, tokens: &[TokenId], page: PageId, pool: &mut PagePool) -> Node {
        pool.keep(page);
        self.last_node += 1;
        let (node, tokens) = (self.last_node, Box::<[TokenId]>::from(tokens));
        self.nodes.insert((before, tokens.clone()), node);
        self.kept.insert(node, Kept { page, before, tokens, after: 0, used: 0 });
        if let Some(before) = self.kept.get_mut(&before) {
            before.after += 1;
            self.ends.remove(&before.used);
        }
        node
    }

    fn forget(&mut self, node: Node, pool: &mut PagePool) {
        let Some(kept) = self.kept.remove(&node) else { return };
        self.ends.remove(&kept.used);
        self.nodes.remove(&(kept.before, kept.tokens));
        if let Some(before) = self.kept.get_mut(&kept.before) {
            before.after -= 1;
            if before.after == 0 {
                self.ends.insert(before.used, kept.before);
            }
        }
        pool.forget(kept.page);
    }

    /// Notes that the pages of a path were used, the last one first: it is the first to go.
    fn touch(&mut self, path: &[Node]) {
        for node in path.iter().rev() {
            self.clock += 1;
            if let Some(kept) = self.kept.get_mut(node) {
                self.ends.remove(&kept.used);
                kept.used = self.clock;
                if kept.after == 0 {
                    self.ends.insert(self.clock, *node);
                }
            }
        }
    }
}
