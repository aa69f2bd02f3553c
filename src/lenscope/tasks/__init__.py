"""Questions, facts and entities with their prompts, and whether a text says an answer."""

from lenscope.tasks.answer_likelihoods import answer_log_likelihoods
from lenscope.tasks.label_recall import LabelSearch, label_search
from lenscope.tasks.model_knowledge import known_chains, known_facts
from lenscope.tasks.questions import Question, few_shot_prompts, load_questions
from lenscope.tasks.relation_files import load_chains, load_entities, load_relations
from lenscope.tasks.relations import Chain, Entity, Fact, Relation, builtin_chains, builtin_entities, builtin_relations
from lenscope.tasks.text_match import mentions, rouge

__all__ = [
    "Chain",
    "Entity",
    "Fact",
    "LabelSearch",
    "Question",
    "Relation",
    "answer_log_likelihoods",
    "builtin_chains",
    "builtin_entities",
    "builtin_relations",
    "few_shot_prompts",
    "known_chains",
    "known_facts",
    "label_search",
    "load_chains",
    "load_entities",
    "load_questions",
    "load_relations",
    "mentions",
    "rouge",
]
