"""Slow float64 loops, written from the papers' equations, that every form of every loss must equal."""

import math

Vector = list[float]


def softmax(logits: Vector, temperature: float) -> Vector:
    largest = max(logits)
    weights = [math.exp((logit - largest) / temperature) for logit in logits]
    return [weight / math.fsum(weights) for weight in weights]


def log_softmax(logits: Vector, temperature: float) -> Vector:
    largest = max(logits)
    total = math.fsum(math.exp((logit - largest) / temperature) for logit in logits)
    return [(logit - largest) / temperature - math.log(total) for logit in logits]


def kl(log_p: Vector, log_q: Vector) -> float:
    return math.fsum(math.exp(a) * (a - b) for a, b in zip(log_p, log_q, strict=True))


def forward_kl(student: Vector, teacher: Vector, temperature: float) -> float:
    return temperature**2 * kl(log_softmax(teacher, temperature), log_softmax(student, temperature))


def reverse_kl(student: Vector, teacher: Vector, temperature: float) -> float:
    return temperature**2 * kl(log_softmax(student, temperature), log_softmax(teacher, temperature))


def tidal_target(student: Vector, teacher: Vector, share: float) -> Vector:
    return [(1.0 - share) * s + share * z for s, z in zip(student, teacher, strict=True)]


def tidal_kl(student: Vector, teacher: Vector, share: float, temperature: float) -> float:
    target = log_softmax(tidal_target(student, teacher, share), temperature)
    return temperature**2 * kl(target, log_softmax(student, temperature))


def forward_kl_gradient(student: Vector, teacher: Vector, temperature: float) -> Vector:
    return tidal_gradient(student, teacher, 1.0, temperature)


def tidal_gradient(student: Vector, teacher: Vector, share: float, temperature: float) -> Vector:
    target = softmax(tidal_target(student, teacher, share), temperature)
    return [temperature * (q - r) for q, r in zip(softmax(student, temperature), target, strict=True)]


def reverse_kl_gradient(student: Vector, teacher: Vector, temperature: float) -> Vector:
    log_q, log_p = log_softmax(student, temperature), log_softmax(teacher, temperature)
    divergence = kl(log_q, log_p)
    return [temperature * math.exp(a) * (a - b - divergence) for a, b in zip(log_q, log_p, strict=True)]


def chunk_sums(token_log_probs: Vector, chunk_ids: list[int], chunks: int) -> Vector:
    return [
        math.fsum(lp for lp, chunk in zip(token_log_probs, chunk_ids, strict=True) if chunk == wanted)
        for wanted in range(chunks)
    ]


def probability(chunk_lp: float, temperature: float, floor: float) -> float:
    return min(max(math.exp(chunk_lp / temperature), floor), 1.0 - floor)


def log_complement(chunk_lp: float, temperature: float, floor: float) -> float:
    """``log(1 - p)`` of the clamped probability; ``1 - p`` by expm1, which keeps its digits near p = 1."""
    rest = -math.expm1(chunk_lp / temperature)
    return math.log(min(max(rest, floor), 1.0 - floor))


def bernoulli_cross_entropy(weights_of: float, student: float, temperature: float, floor: float) -> float:
    log_p = math.log(probability(student, temperature, floor))
    return -(weights_of * log_p + (1.0 - weights_of) * log_complement(student, temperature, floor))


def forward_calm(student: float, teacher: float, temperature: float, floor: float) -> float:
    p_teacher = probability(teacher, temperature, floor)
    return bernoulli_cross_entropy(p_teacher, student, temperature, floor)


def tidal_calm(student: float, teacher: float, share: float, temperature: float, floor: float) -> float:
    p_student = probability(student, temperature, floor)
    mixed = (1.0 - share) * p_student + share * probability(teacher, temperature, floor)
    return bernoulli_cross_entropy(mixed, student, temperature, floor)


def reverse_calm(student: float, teacher: float, temperature: float, floor: float) -> float:
    return bernoulli_cross_entropy(probability(student, temperature, floor), teacher, temperature, floor)


def reverse_bernoulli_kl(student: float, teacher: float, temperature: float, floor: float) -> float:
    p = probability(student, temperature, floor)
    log_p, log_rest = math.log(p), log_complement(student, temperature, floor)
    entropy = -(p * log_p + (1.0 - p) * log_rest)
    return reverse_calm(student, teacher, temperature, floor) - entropy


def forward_calm_coefficient(student: float, teacher: float, temperature: float) -> float:
    """``d loss / d LP_S`` without a floor: ``-(1/T) (p_T - p_S) / (1 - p_S)``."""
    p_student, p_teacher = math.exp(student / temperature), math.exp(teacher / temperature)
    return -(p_teacher - p_student) / -math.expm1(student / temperature) / temperature


def reverse_calm_coefficient(student: float, teacher: float, temperature: float) -> float:
    """``-(p_S / T) log(p_T / (1 - p_T))``."""
    log_odds = teacher / temperature - math.log(-math.expm1(teacher / temperature))
    return -math.exp(student / temperature) / temperature * log_odds


def reverse_bernoulli_coefficient(student: float, teacher: float, temperature: float) -> float:
    """``(p_S / T) (logit p_S - logit p_T)``."""
    log_odds = student / temperature - math.log(-math.expm1(student / temperature))
    own = math.exp(student / temperature) / temperature * log_odds
    return own + reverse_calm_coefficient(student, teacher, temperature)
