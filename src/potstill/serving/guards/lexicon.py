# ruff: noqa: E501
# One rule a line, however long: they are read and weighed against each other in columns.
"""What the injection screen knows: classes of words, and the orders of classes that attacks come in.

A rule is a sequence of classes (capitals) and words (small letters); `A/B` is either, `~n` at most n other words of the
same sentence, `~~n` the same across sentences. Its weight is how surely a text that holds it is an attack. Families
are combined as if they were independent; within one family the heaviest rule counts.
"""

from __future__ import annotations

CLASSES: dict[str, str] = {
    # English, then German, French, Spanish, Italian, Portuguese, without accents
    "OVERRIDE": """ignore ignoring disregard disregarding forget forgetting override overriding overrule overwrite bypass
        bypassing neglect circumvent sidestep unlearn unfollow supersede supersedes abandon discard dismiss
        ignoriere ignorieren ignorier vergiss missachte verwirf ignorez oublie oubliez ignora ignorar olvida olvide
        olvidar dimentica dimenticate ignori ignorate esqueca desconsidere ignorer""",
    "DROP": "skip drop cancel erase delete remove clear reset wipe void nullify suspend disable deactivate terminate",
    "PRIOR": """previous prior above earlier preceding former existing initial original foregoing past old aforementioned
        vorherigen vorherige vorigen bisherigen obigen fruheren precedentes precedente precedents anteriores anterior
        previas previo precedenti""",
    "ALL": """all any every everything whatever entire whole alle allen jede toutes tous todas todos tutte tutti tudo
        todo alles""",
    "RULES": """instruction instructions prompt prompts preprompt guideline guidelines directive directives
        programming safeguard safeguards guardrail guardrails anweisung anweisungen instruktionen regeln vorgaben
        instructions consignes directives regles instrucciones reglas directrices istruzioni regole instrucoes regras
        diretrizes systemanweisungen systemanweisung systemregeln""",
    "LIMITS": """rule rules restriction restrictions constraint constraints limitation limitations policy policies filter
        filters filtering censorship training alignment ethics morals protocol protocols safety boundaries
        configuration checks richtlinien sicherheitsrichtlinien einschrankungen beschrankungen filterung restricciones
        limitaciones seguridad restrizioni limiti restricoes limites securite contraintes""",
    "TALK": "conversation context chat dialogue history messages text words content message input lines",
    "YOUR": "your you u yours yourself deine deinen dein ihre ihren vos votre tes tus su sus tuas suas tue tuo",
    "NOT": "not never don't dont no longer cannot stop cease without nicht ne",
    "HEED": """follow obey apply applies heed adhere comply listen respect observe bound folge befolge gelten gilt aplican
        applicano appliquent""",
    "STOP": "stop never cease dont don't quit",
    "WITHOUT": "without ohne sin sans senza sem",
    "SYSTEM": """system hidden secret initial internal original base core developer confidential private
        systemprompt systeme sistema nascosto oculto""",
    "PROMPT": """prompt prompts instruction instructions guidelines preamble preprompt directives configuration
        systemprompt systemanweisungen anweisungen instrucciones istruzioni instrucoes consignes""",
    "REVEAL": """reveal show print repeat output display leak dump disclose expose recite echo divulge unveil
        reproduce quote paste transcribe translate summarize summarise list write tell give share encode spell zeige
        nenne verrate wiederhole affiche montre revele repete muestra revela repite mostra rivela ripeti mostre repita
        drucke imprime gib reveals prints recites shows outputs repeats tells lists extract return provide rephrase paraphrase describe convert""",
    "PRINT": "reveal show print repeat output display leak dump disclose recite echo divulge reproduce repeats prints spell",
    "VERBATIM": "verbatim exactly word-for-word literally unedited unmodified codeblock precisely",
    "BECOME": "act pretend roleplay behave simulate impersonate imagine play become speak respond answer emulate assume",
    "UNBOUND": """unrestricted unfiltered uncensored unlimited jailbroken jailbreak jailbreaking unethical amoral immoral
        unaligned lawless unshackled unchained unbound unmoderated limitless""",
    "PERSONA": "dan stan dude aim devmode evilbot antigpt freegpt chaosgpt mongo omega basedgpt badgpt betterdan",
    "MODE": "mode modus persona character simulation",
    "POWER": "developer dev god debug admin sudo root maintenance opposite unsafe superuser kernel dan jailbreak override",
    "GRANT": """activate activated enable enabled enter entering unlock unlocked switch switched engage initiate
        engaged entered granted""",
    "MACHINE": "ai a.i llm assistant chatbot bot model agent gpt chatgpt llama claude gemini assistants agents models llms",
    "MAKER": """openai anthropic developer developers admin administrator creator creators engineer engineers
        programmer sysadmin ceo superuser operator""",
    "SEND": "send forward post email upload transmit exfiltrate leak deliver submit append mail ship export copy",
    "DATA": """password passwords credentials credential secrets secret key keys token tokens conversation history
        transcript cookies database records files emails inbox contacts pii prompt api env""",
    "USER": "user users human customer recipient anyone owner them him her person people",
    "TELL": "tell inform mention alert notify reveal say show warn disclose report indicate",
    "REFUSE": """refuse decline apologize apologise refusal reject disclaim apologies disclaimer disclaimers warnings
        warning moralize lecture censor""",
    "DECODE": "decode decrypt deobfuscate unscramble decipher base64 rot13 hex b64 morse caesar reversed backwards",
    "EXECUTE": "execute follow obey run perform comply carry do act interpret",
    "RESPOND": "respond answer reply output say write print return begin start responder responde antworte antworten repondre rispondi",
    "INVALID": """void null nullified lifted revoked disabled suspended obsolete superseded cancelled canceled outdated
        invalid deprecated expired overridden irrelevant""",
    "HARMFUL": "illegal harmful unethical dangerous forbidden prohibited immoral restricted malicious explicit hateful",
    "STORY": "hypothetical hypothetically fictional fiction story novel grandma grandmother movie screenplay dream",
    "TOLD": "told said given received instructed learned written stated programmed",
}

# From classes whose words are hardly ever met to those of every text: a rule is tried where its rarest part stands.
RAREST: tuple[str, ...] = (
    "UNBOUND", "PERSONA", "VERBATIM", "INVALID", "OVERRIDE", "PROMPT", "RULES", "POWER", "MAKER", "HARMFUL", "REFUSE",
    "DECODE", "LIMITS", "GRANT", "exempt", "MODE", "MACHINE", "STORY", "BECOME", "DROP", "EXECUTE", "DATA", "SYSTEM",
    "jailbreak", "grandma", "instead", "bound", "nothing", "begins", "stay", "anything", "authorized", "collect", "HEED", "WITHOUT", "PRINT", "STOP",
    "REVEAL", "TALK", "SEND", "TELL", "TOLD", "PRIOR", "RESPOND", "USER", "YOUR", "ALL", "NOT",
)  # fmt: skip

# family, weight, rule
RULES: tuple[tuple[str, float, str], ...] = (
    ("override", 0.95, "OVERRIDE ~3 PRIOR ~3 RULES/LIMITS"),
    ("override", 0.95, "OVERRIDE/DROP ~4 YOUR ~3 RULES"),
    ("override", 0.80, "OVERRIDE ~2 YOUR ~2 LIMITS"),
    ("override", 0.90, "OVERRIDE ~2 ALL ~3 RULES"),
    ("override", 0.75, "OVERRIDE ~2 ALL ~2 LIMITS"),
    ("override", 0.90, "OVERRIDE ~2 RULES ~3 PRIOR"),
    ("override", 0.90, "OVERRIDE ~2 SYSTEM ~1 RULES/LIMITS"),
    ("override", 0.85, "DROP ~2 PRIOR/ALL ~2 RULES"),
    ("override", 0.60, "OVERRIDE ~2 RULES"),
    ("override", 0.85, "OVERRIDE ~1 ALL ~4 PRIOR/TOLD"),
    ("override", 0.85, "OVERRIDE ~1 what you ~3 TOLD"),
    ("override", 0.80, "OVERRIDE ~1 LIMITS ~2 PRIOR"),
    ("override", 0.85, "OVERRIDE ~2 TALK PRIOR"),
    ("override", 0.80, "OVERRIDE ~1 ALL ~1 PRIOR ~2 TALK"),
    ("override", 0.70, "OVERRIDE ~1 PRIOR ~1 TALK ~~4 YOUR/new/now/instead"),
    ("override", 0.85, "NOT ~2 HEED ~3 PRIOR/YOUR ~3 RULES/LIMITS"),
    ("override", 0.85, "do not ~1 HEED ~3 RULES"),
    ("override", 0.85, "STOP ~1 HEED/following/obeying ~3 RULES"),
    ("override", 0.50, "NOT ~1 HEED ~3 RULES"),
    ("override", 0.75, "DROP/OVERRIDE ~2 ALL ~1 safety"),
    ("override", 0.70, "YOUR ~2 RULES/LIMITS ~2 changed/updated/replaced"),
    ("override", 0.70, "exempt ~3 LIMITS"),
    ("override", 0.85, "RULES/LIMITS ~3 NOT ~2 HEED"),
    ("override", 0.85, "PRIOR/YOUR ~2 RULES/LIMITS ~3 INVALID"),
    ("override", 0.85, "RULES ~3 INVALID"),
    ("override", 0.75, "RULES ~9 INVALID"),
    ("override", 0.75, "LIMITS ~2 INVALID"),
    ("override", 0.60, "safety LIMITS ~1 are/is ~1 off"),
    ("override", 0.80, "put/set/leave aside ~3 RULES/LIMITS"),
    ("override", 0.80, "set/put/leave ~1 PRIOR/YOUR ~2 RULES/LIMITS ~1 aside"),
    ("override", 0.75, "RULES/LIMITS ~2 no longer"),
    ("override", 0.80, "NOT ~1 bound ~2 by"),
    ("override", 0.75, "instead ~1 of ~4 PRIOR/YOUR ~2 RULES"),
    ("override", 0.70, "OVERRIDE ~1 ALL ~2 before/know/learned"),
    ("new task", 0.50, "new/updated/revised/real/actual RULES"),
    ("new task", 0.80, "YOUR new/real/true/actual/only ~1 task/goal/purpose/objective/RULES/job/role/mission"),
    ("new task", 0.50, "instead ~2 do/output/print/say/write/respond/answer/reply"),
    ("new task", 0.50, "these/following/new ~2 RULES ~3 priority/precedence/supersede/OVERRIDE"),
    ("reveal", 0.90, "REVEAL ~5 SYSTEM ~1 PROMPT"),
    ("reveal", 0.85, "REVEAL ~4 YOUR ~3 PROMPT/guardrails/rules"),
    ("reveal", 0.80, "what/what's/whats ~3 YOUR ~2 SYSTEM ~1 PROMPT/rules"),
    ("reveal", 0.70, "what/what's/whats ~2 YOUR ~1 PROMPT"),
    ("reveal", 0.75, "what ~3 were/are you ~2 TOLD/instructed ~3 not/to/before/above"),
    ("reveal", 0.80, "PRINT ~4 TALK/ALL ~2 PRIOR"),
    ("reveal", 0.50, "REVEAL ~4 TALK/ALL ~2 PRIOR"),
    ("reveal", 0.75, "PRINT ~2 ALL ~4 before ~2 this/user/word/me"),
    ("reveal", 0.75, "ALL ~3 before ~4 YOUR ~1 context/prompt"),
    ("reveal", 0.75, "REVEAL ~6 RULES/LIMITS ~3 you ~4 TOLD/follow/given"),
    ("reveal", 0.70, "what ~1 RULES/LIMITS ~3 you ~4 TOLD/follow/given"),
    ("reveal", 0.75, "RULES ~2 at/from ~1 top/start/beginning ~3 TALK"),
    ("reveal", 0.70, "first/last/opening ~1 sentence/line/words/paragraph/word ~2 YOUR ~2 PROMPT/LIMITS/context"),
    ("reveal", 0.70, "REVEAL ~3 PROMPT ~2 PRIOR/TOLD"),
    ("reveal", 0.85, "REVEAL ~4 PRIOR ~2 PROMPT"),
    ("reveal", 0.60, "begins/beginning/starting/starts ~1 with you are"),
    ("reveal", 0.40, "VERBATIM"),
    ("reveal", 0.60, "YOUR system prompt/message/instructions"),
    ("persona", 0.85, "you ~2 are/are ~1 now ~4 UNBOUND/PERSONA"),
    ("persona", 0.85, "BECOME ~5 UNBOUND/PERSONA"),
    ("persona", 0.85, "PERSONA ~3 do anything now"),
    ("persona", 0.90, "do anything now"),
    ("persona", 0.85, "UNBOUND ~2 MACHINE/MODE/version/response/answers"),
    ("persona", 0.80, "without/no/free ~1 any/from ~2 LIMITS/RULES/UNBOUND"),
    ("persona", 0.75, "MACHINE ~4 without/no/zero ~2 LIMITS/RULES"),
    ("persona", 0.80, "BECOME ~6 without/no/zero ~2 LIMITS/RULES"),
    ("persona", 0.80, "you ~1 have/had/has no ~2 LIMITS/RULES"),
    ("persona", 0.75, "MACHINE/it/you ~3 have/had/has/with no ~2 LIMITS/RULES/UNBOUND"),
    ("persona", 0.75, "never ~3 say no"),
    ("persona", 0.75, "RESPOND ~4 WITHOUT ~2 LIMITS/RULES/censorship/filtering"),
    ("persona", 0.45, "you are now"),
    ("persona", 0.45, "from now on you"),
    ("persona", 0.45, "BECOME ~3 MACHINE"),
    ("persona", 0.45, "stay/remain/break ~1 in/out/character"),
    ("mode", 0.80, "god/dan/jailbreak/sudo/opposite/unsafe/kernel MODE"),
    ("mode", 0.60, "GRANT ~3 POWER ~1 MODE/access/privileges"),
    ("mode", 0.60, "POWER MODE ~3 GRANT/on/now"),
    ("mode", 0.45, "POWER MODE"),
    ("mode", 0.80, "in POWER MODE ~2 you"),
    ("persona", 0.75, "jailbreak/jailbroken/jailbreaking ~3 YOUR/MACHINE/MODE/GRANT/prompt"),
    ("persona", 0.60, "BECOME ~4 opposite/evil"),
    ("harm", 0.60, "HARMFUL ~3 things/content/requests/questions/information/instructions/anything"),
    ("harm", 0.50, "no matter how ~1 HARMFUL"),
    ("harm", 0.50, "even ~1 if ~4 HARMFUL"),
    ("compel", 0.75, "NOT/never ~2 refuse/decline/reject/moralize/censor"),
    ("compel", 0.45, "NOT/never ~3 REFUSE"),
    ("compel", 0.60, "NOT ~2 say/include/add/use ~2 sorry/can't/cannot/REFUSE"),
    ("compel", 0.60, "RESPOND ~3 with sure/absolutely/certainly/yes/of"),
    ("compel", 0.50, "must/will ~1 always ~2 comply/answer/obey/respond"),
    ("compel", 0.60, "answer/comply ~1 with/to ~1 ALL ~1 questions/requests ~2 NOT"),
    ("compel", 0.65, "two/both ~2 responses/answers/ways ~~8 UNBOUND/PERSONA/normal/classic"),
    ("story", 0.75, "STORY ~~12 UNBOUND"),
    ("story", 0.60, "STORY ~~12 HARMFUL"),
    ("story", 0.75, "STORY ~~12 SYSTEM PROMPT"),
    ("story", 0.60, "STORY ~8 no/without ~2 LIMITS/RULES"),
    ("story", 0.50, "grandma/grandmother ~~14 sleep/used/recipe/stories"),
    ("authority", 0.70, "i'm/i/this ~1 am/is/as ~2 YOUR ~1 MAKER"),
    ("authority", 0.50, "i'm/i ~1 am ~3 MAKER"),
    (
        "authority",
        0.60,
        "message/notice/update/directive/instruction ~1 from ~2 openai/anthropic/developers/administrator/system",
    ),
    ("authority", 0.55, "authorized/authorised/authorization ~2 OVERRIDE/disable/bypass/POWER"),
    ("authority", 0.55, "system/security/admin ~1 override/update/notice/alert ~~4 RULES/LIMITS/MACHINE/YOUR"),
    ("exfiltrate", 0.75, "SEND ~4 YOUR/ALL/PRIOR ~3 DATA ~~10 url/http/https/attacker/webhook/server/address/com"),
    ("exfiltrate", 0.60, "SEND ~3 ALL/this/the ~3 DATA ~3 to ~4 url/http/https/attacker/webhook/server/com/evil"),
    ("exfiltrate", 0.75, "NOT ~1 TELL ~3 user/users/human/humans/customer"),
    ("exfiltrate", 0.75, "NOT ~1 TELL ~2 these/this/those ~1 RULES"),
    ("exfiltrate", 0.60, "TELL ~2 user/users/human/customer nothing"),
    ("exfiltrate", 0.40, "NOT ~1 TELL ~4 USER"),
    (
        "exfiltrate",
        0.60,
        "without ~3 TELL/informing/telling/notifying/mentioning/alerting/asking/knowing/knowledge ~2 USER",
    ),
    ("exfiltrate", 0.60, "without ~2 USER ~2 knowing/noticing/knowledge/consent"),
    (
        "exfiltrate",
        0.65,
        "REVEAL ~3 ALL/other/another ~2 user's/users/customers/customer's/users' ~3 DATA/data/details/information",
    ),
    (
        "exfiltrate",
        0.60,
        "REVEAL ~3 api/admin/database/environment/env keys/key/password/passwords/variables/credentials",
    ),
    ("indirect", 0.70, "if/when/attention/note/important/dear/hey/instructions ~1 you ~1 are ~3 MACHINE"),
    (
        "indirect",
        0.50,
        "when/if/once/while ~1 you ~2 read/process/see/open/summarize/summarise ~2 this/ticket/email/page",
    ),
    ("indirect", 0.60, "for ~2 ai ~2 agents/assistants/agent/assistant/models/systems"),
    ("exfiltrate", 0.70, "collect/gather/harvest/dump ~3 user/customer/users/customers/all ~4 DATA ~~4 SEND"),
    (
        "indirect",
        0.75,
        "attention/important/note/notice/instruction/instructions/message/dear ~2 to/for/all ~3 MACHINE",
    ),
    ("indirect", 0.70, "attention ~1 MACHINE"),
    ("indirect", 0.45, "dear/important/hey ~1 MACHINE"),
    ("indirect", 0.70, "when ~2 MACHINE ~2 reads/processes/summarizes/summarises/parses/analyzes/sees/read/process"),
    ("indirect", 0.70, "MACHINE ~2 reading/processing/summarizing/summarising/parsing/analyzing ~2 this"),
    ("indirect", 0.45, "MACHINE ~2 must/should/shall ~3 SEND/OVERRIDE/visit/click/call/EXECUTE"),
    ("decode", 0.80, "DECODE ~~8 EXECUTE ~3 it/them/result/instructions/command/what/RULES"),
    ("decode", 0.50, "DECODE ~3 this/following/message ~~8 EXECUTE/respond/answer"),
    ("decode", 0.55, "OVERRIDE ~2 nothing ~2 except"),
)

# Signs in the text itself, not in its words (Python's syntax; read on the plain text). Every repeat has a bound, so that
# no text makes a search take more than linear time.
_FENCED = r"(?:--|==|\*\*|##|<|\[)\s{0,4}(?:end|begin|start)\s{1,4}(?:of\s{1,4})?(?:the\s{1,4})?(?:system|user|prompt|instructions?|context|document|input|admin|new)"
SIGNS: tuple[tuple[str, float, str, str], ...] = (
    # what must be in the text for a try, weight, family, pattern
    ("<|", 0.95, "template", r"<\|(?:im_start|im_end|im_sep|system|user|assistant|endoftext|eot_id|begin_of_text|end|start_header_id)\|>"),
    ("inst]", 0.95, "template", r"\[/?inst\]"),
    ("<<", 0.95, "template", r"<</?sys>>"),
    ("<", 0.85, "template", r"</?(?:system|sys|instructions?|system[_-]?(?:prompt|message|instructions?)|admin)>"),
    ("<start_of_turn", 0.95, "template", r"<start_of_turn>"),
    ("###", 0.70, "template", r"###\s{0,4}(?:system|instructions?|new instructions?|human|assistant|response)\b\s{0,4}:?"),
    ("instruction", 0.75, "new task", r"\b(?:new|updated|revised) instructions?\s{0,4}:"),
    ("system", 0.55, "template", r"(?:^|[\n\"'\]>])\s{0,4}[\[(*#-]{0,4}\s{0,4}system\s{0,4}(?:prompt|message|override|instructions?|note)?\s{0,4}[\])*]{0,4}\s{0,4}:"),
    ("system", 0.75, "template", r"\[\s{0,4}system\b[^\]\n]{0,40}\]"),
    ("system", 0.75, "template", r"(?:^|[\n\"'\]>])\s{0,4}[\[(*#-]{0,4}\s{0,4}system\s{0,4}(?:prompt|message|override|instructions?|note)?\s{0,4}[\])*]{0,4}\s{0,4}:[^\n]{0,60}\b(?:you|must|call|delete|send|grant|approve|ignore|required|release|treat|always|never)\b"),
    ("assistant", 0.75, "template", r"(?:^|\n)\s{0,4}assistant\s{0,4}:\s{0,4}(?:sure|certainly|of course|absolutely|ok|yes)\b"),
    ("@", 0.60, "exfiltrate", r"\b(?:send|email|forward|mail|post|upload|share|envoie\w{0,4}|schicke?|envia|invia)\b[^.\n]{0,60}\b(?:customers?|clients?|passwords?|credentials?|keys?|secrets?|conversation|database|donnees|datos|dati|kunden\w{0,12})\b[^\n]{0,60}@"),
    ("@", 0.60, "exfiltrate", r"\b(?:customers?|clients?|passwords?|credentials?|api keys?|secrets?|database|donnees|datos|dati|kunden\w{0,12})\b[^.\n]{0,40}\b(?:send|email|forward|mail|post|upload|share|envoie\w{0,4}|schicke?|envia|invia)\b[^\n]{0,60}@"),
    ("assistant", 0.50, "template", r"\n\s{0,4}(?:assistant|user|human)\s{0,4}:"),
    *((sign, 0.70, "template", _FENCED) for sign in ("--", "==", "**", "##", "<", "[")),
    ("role", 0.70, "template", r"[\"']role[\"']\s{0,4}:\s{0,4}[\"'](?:system|developer)[\"']"),
    ("](http", 0.60, "exfiltrate", r"!\[[^\]\n]{0,80}\]\(https?://[^)\s]{1,200}(?:\{|%7b|\$|<|\[)"),
    ("<!--", 0.55, "indirect", r"<!--[^>]{0,300}\b(?:ai|assistant|llm|model|instructions?)\b"),
)  # fmt: skip

# Texts in other alphabets, read on the text in lower case.
OTHER_ALPHABETS: tuple[tuple[float, str, str], ...] = (
    (0.90, "override", "(?:\u5ffd\u7565|\u65e0\u89c6|\u7121\u8996|\u5fd8\u8bb0|\u5fd8\u6389).{0,12}(?:\u6307\u4ee4|\u6307\u793a|\u63d0\u793a|\u89c4\u5219|\u8bf4\u660e)"),
    (0.90, "override", "(?:\u6307\u793a|\u547d\u4ee4|\u30d7\u30ed\u30f3\u30d7\u30c8|\u30eb\u30fc\u30eb).{0,12}(?:\u7121\u8996|\u5fd8\u308c)"),
    (0.90, "override", "(?:\uc9c0\uc2dc|\uba85\ub839|\ud504\ub86c\ud504\ud2b8).{0,14}\ubb34\uc2dc"),
    (0.90, "override", "(?:\u0438\u0433\u043d\u043e\u0440\u0438\u0440|\u0437\u0430\u0431\u0443\u0434\u044c).{0,30}(?:\u0438\u043d\u0441\u0442\u0440\u0443\u043a\u0446|\u043f\u0440\u0430\u0432\u0438\u043b|\u0443\u043a\u0430\u0437\u0430\u043d\u0438)"),
    (0.90, "override", "\u062a\u062c\u0627\u0647\u0644.{0,30}(?:\u062a\u0639\u0644\u064a\u0645\u0627\u062a|\u0627\u0644\u0623\u0648\u0627\u0645\u0631)"),
    (0.85, "reveal", "(?:\u663e\u793a|\u544a\u8bc9|\u8f93\u51fa|\u900f\u9732).{0,12}(?:\u7cfb\u7edf\u63d0\u793a|\u63d0\u793a\u8bcd|\u7cfb\u7edf\u6307\u4ee4)"),
    (0.85, "reveal", "\u0441\u0438\u0441\u0442\u0435\u043c\u043d.{0,4} (?:\u043f\u0440\u043e\u043c\u043f\u0442|\u0438\u043d\u0441\u0442\u0440\u0443\u043a\u0446)"),
)  # fmt: skip
